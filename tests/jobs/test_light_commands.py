"""A command that only looks at renders, or talks to whoever makes them, imports no library that
makes them: torch's import alone takes longer than all that it does."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

KEPT = Path(__file__).resolve().parents[1] / "data" / "render-format-1"
SCRIPT = """
import json, sys
from longreel.jobs.cli import main
try:
    main()
except SystemExit as stop:
    heavy = {"av", "diffusers", "torch", "transformers"} & {*sys.modules}
    print(json.dumps([stop.code, sorted(heavy)]), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def nobody():
    """An address at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("presets", 0),
        ("renders --home .", 0),
        ("renders --home . --json", 0),
        ("renders --home . --prune --yes", 0),
        ("trace kept --home .", 0),
        ("resume nowhere --home .", 2),
        ("batch prompts.csv --out videos --token-file nowhere", 2),
        ("status r --address NOBODY", 2),
        ("cancel r --address NOBODY", 2),
    ],
)
def test_what_makes_no_frame_imports_nothing_that_does(tmp_path, nobody, command, code):
    shutil.copytree(KEPT, tmp_path / "renders" / "kept")
    (tmp_path / "prompts.csv").write_text("prompt\na cat\n")
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, *command.replace("NOBODY", nobody).split()],
        cwd=tmp_path,
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stderr.splitlines()[-1]) == [code, []], done.stderr
