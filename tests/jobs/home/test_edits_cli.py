"""Edits as the command line asks for them."""

import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from command import TINY, longreel
from tiny_blocks import overrides

from longreel.jobs.home.edits import extend
from longreel.jobs.home.home import Home
from longreel.jobs.home.journal import JournalReader
from longreel.jobs.mp4 import decode_mp4

SIZES = [*TINY, "video.height=32", "video.width=48", "sampling.steps=3"]
QUEUE = ["blocks.policy=dualparal-grouped", "blocks.size=2", "blocks.left=2", "video.frames=41"]

pytestmark = pytest.mark.usefixtures("tiny_archs")


def test_the_command_line_extends_and_redoes(tmp_path):
    place, output = tmp_path / "home", tmp_path / "cat.mp4"
    sizes = ["model.device=cpu", "sampling.steps=1", "video.frames=33"]
    asked = overrides("dualparal-grouped", *sizes)
    assert longreel("render", "a cat", "-o", output, "--home", place, *asked).code == 0
    old = np.stack(list(decode_mp4(output)))
    (render,) = Home(place).renders()

    def resume(*more):
        return longreel("resume", render.id, "--home", place, *more)

    more = ["--extend", "0.9s", "--prompt-at", "2.5", "a dog", "parallel.num_stages=2"]
    assert resume(*more).code == 0
    longer = np.stack(list(decode_mp4(output)))
    assert (len(longer), np.array_equal(longer[:33], old)) == (49, True)
    said = resume("--redo", "1s..1.2s", "--prompt", "a fish").err
    assert "frames 13..21 are made anew (whole segments), 21..29 blended" in said
    frames = np.stack(list(decode_mp4(output)))
    same = (frames == longer).all(axis=(1, 2, 3))
    assert same[:13].all()
    assert not same[13:21].any()
    assert same[29:].all()
    with av.open(str(output)) as container:
        at = container.metadata["prompt_at"].splitlines()
        assert container.metadata["config"].count("frames: 49") == 1
    assert at == ["0.8125 a fish", "1.3125 a cat", "2.0625 a dog"]
    extend(render, 8)  # asked for, and no longer wanted
    output.unlink()
    assert resume("--drop").code == 0
    assert np.array_equal(np.stack(list(decode_mp4(output))), frames)
    for options, said in [
        (["--drop"], "has no unfinished edit"),
        (["--drop", "--submit"], "drop and --submit do not go together"),
        (["--extend", "8", "--redo", "0..4"], "two edits"),
        (["--prompt", "a dog"], "give --extend or --redo with it"),
        (["--redo", "0..4", "--prompt-at", "1", "a dog"], "is for what --extend makes"),
        (["--redo", "12"], "is no section of a video"),
        (["--extend", "8m"], "or seconds as 12s"),
        (["--extend", "1.5"], "or seconds as 12s"),
        (["--extend", "8", "--submit"], "leave --submit out"),
        (["--submit"], "--home=.* would be ignored, as with --submit a render goes on where"),
        (["--address", "a:1"], "--address=a:1 would be ignored, as it is for --submit; give"),
        (["--wheel", "a.whl"], "--wheel=a.whl would be ignored"),
        (["--extend", "8", "sampling.steps=4"], "would change the frames to come"),
    ]:
        assert re.search(said, resume(*options).message), options


@pytest.mark.slow
@pytest.mark.parametrize("segments", [0, 1])  # that the edit has made when it is killed
@pytest.mark.parametrize("edit", [("--extend", "64"), ("--redo", "14..34")])
def test_a_command_that_was_killed_in_an_edit_goes_on_to_the_same_file(tmp_path, edit, segments):
    place, output = tmp_path / "home", tmp_path / "cat.mp4"
    asked = [*SIZES, *QUEUE, "checkpoint.every_s=0"]
    assert longreel("render", "a cat", "-o", output, "--home", place, *asked).code == 0
    (render,) = Home(place).renders()
    shutil.copytree(place, tmp_path / "other")
    there = ["resume", render.id, "--home", place, "-o", output]
    whole = tmp_path / "whole.mp4"
    assert longreel("resume", render.id, "--home", tmp_path / "other", "-o", whole, *edit).code == 0
    before = len(render.segments())
    command = [str(Path(sys.executable).parent / "longreel"), *map(str, there), *edit]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        journal, deadline = JournalReader(render.path / "journal"), time.monotonic() + 200
        seen = Counter()
        while seen["edit"] < 1 or seen["segment"] < before + segments:
            seen.update(event["event"] for event in journal.poll())
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    assert render.status().state in ("queued", "paused")
    assert longreel(*there).code == 0
    assert output.read_bytes() == whole.read_bytes()
    hidden = [path for path in place.rglob(".*") if path.name != ".lock-guard"]
    assert not hidden
