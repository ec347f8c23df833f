"""Files that are whole or not there: also those that a killed process had begun."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from longreel.jobs.home.durable import remove_parts, write_whole, written_aside

KILLED = """
import os, sys
from pathlib import Path
from longreel.jobs.home.durable import written_aside
with written_aside(Path(sys.argv[1])) as part:
    if sys.argv[2] == "folder":
        part.mkdir()
        part = part / "000000.png"
    part.write_bytes(b"some of it")
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_has_left_goes_with_the_next_that_writes_it(tmp_path, kind):
    """In a user's folder nobody else would ever take it away."""
    target = tmp_path / "my [best] video*.mp4"
    others = [tmp_path / ".other.0123abcd.part", tmp_path / ".my [best] video*.mp4.notes.part"]
    for other in others:
        other.write_bytes(b"of somebody else")
        os.utime(other, (0, 0))
    command = [sys.executable, "-P", "-c", KILLED, str(target), kind]
    assert subprocess.run(command, timeout=60).returncode == -9
    (left,) = {*tmp_path.iterdir()} - {*others}
    write_whole(target, b"fresh")  # the other may be at it still, as far as we know
    assert left.exists()
    two_days_ago = time.time() - 2 * 86_400
    os.utime(left, (two_days_ago, two_days_ago))
    write_whole(target, b"later")
    assert {*tmp_path.iterdir()} == {target, *others}
    assert target.read_bytes() == b"later"


def test_of_a_render_they_are_removed_by_who_takes_it_over_alone(tmp_path):
    left = tmp_path / ".000000.m4s.0123abcd.part"
    left.write_bytes(b"of a process that was stopped, and may be there")
    os.utime(left, (0, 0))
    with written_aside(tmp_path / "000000.m4s", lambda: None) as part:
        part.write_bytes(b"whole")
    assert left.exists()
    remove_parts(tmp_path, lambda: None)
    assert [*tmp_path.iterdir()] == [Path(tmp_path / "000000.m4s")]
