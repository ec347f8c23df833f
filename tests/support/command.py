"""The command line in this process: what a user types, and what comes back."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from texts import TEXTS
from typer.testing import CliRunner

from longreel.jobs.cli import app
from longreel.pipeline import backend, codec

# random weights: what is asked here holds of any model
TINY = ("model.arch=tiny", "model.checkpoint=random", f"model.text_cache={TEXTS}")
# a render of a second: 9 frames of 32 x 48 in 3 steps
SMALL = (
    *TINY,
    "video.height=32",
    "video.width=48",
    "video.frames=9",
    "sampling.steps=3",
)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one line that an error is."""
        (line,) = self.err.splitlines()
        assert line.startswith("longreel: ")
        return line.removeprefix("longreel: ")


def longreel(*arguments: object) -> Outcome:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if not isinstance(result.exception, SystemExit | None):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def forbid_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, a render that loads any part of its model fails."""

    def loaded(*_: object) -> None:
        raise AssertionError("something was loaded")

    for name in ("encode_texts", "load_plan_vae", "encode_condition"):
        monkeypatch.setattr(codec, name, loaded)
    monkeypatch.setattr(backend.Experts, "get", loaded)


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }
