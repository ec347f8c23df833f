"""What `--help` says of every option, and how commands end that nobody reads or waits for."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from command import longreel

from longreel.jobs.cli import app
from longreel.jobs.client.client import Client
from longreel.jobs.evaluate import records

COMMANDS = typer.main.get_command(app).commands
# without these there is none of it
ABSENT = {
    *("image", "prompts", "prompt_at", "new_prompt", "setting", "plot", "latents"),
    *("extend", "redo", "wheel"),
    *("serve address", "serve token_file", "submit output"),
}
RENDER = Path(__file__).resolve().parents[1] / "data" / "render-format-1"
LONGREEL = str(Path(sys.executable).parent / "longreel")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_does_and_its_default(command):
    for parameter in COMMANDS[command].params:
        assert parameter.help, parameter.name
        is_named = parameter.name in ABSENT or f"{command} {parameter.name}" in ABSENT
        if parameter.param_type_name == "argument" or parameter.required or is_named:
            continue
        shown = parameter.default is not None or getattr(parameter, "is_flag", False)
        assert shown or "by default" in parameter.help.lower(), parameter.name


@pytest.mark.parametrize("arguments", ["--help", "presets", "renders", "trace 2"])
def test_a_reader_who_stops_reading_sees_no_trace(arguments, tmp_path):
    home = tmp_path / "longreel" / "renders"
    home.mkdir(parents=True)
    shutil.copytree(RENDER, home / "20260101-000000-0000000")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [LONGREEL, *arguments.split()],
        cwd=tmp_path,
        env=os.environ | {"XDG_DATA_HOME": str(tmp_path)},
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def interrupted(*_, **__):
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["batch", "a.csv"], "the server goes on with what it has; the same command again fetches"),
        (["evaluate", "--truth"], "the same command again goes on with the clips that are left"),
    ],
)
def test_what_is_stopped_says_how_it_goes_on(tmp_path, monkeypatch, command, message):
    monkeypatch.setattr(Client, "batch", interrupted)
    monkeypatch.setattr(records, "evaluate", interrupted)
    done = longreel(*command, "-o", tmp_path)
    assert done.code == 130
    assert done.message.startswith(f"stopped; {message}")
