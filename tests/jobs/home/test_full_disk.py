"""A disk that is full for a while costs time, or an end with its reason, and no frame."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError
from tiny_blocks import overrides, shallow

from longreel.jobs.home import checkpoints, record
from longreel.jobs.home.attempt import Attempt
from longreel.jobs.home.home import Home
from longreel.jobs.home.journal import JournalReader, JournalWriter
from longreel.jobs.home.record import RenderRun
from longreel.jobs.render import plan_render


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def queued(tiny_archs, tmp_path):
    settings = overrides("causal", shallow("causal"), "model.device=cpu")
    return Home(tmp_path).create(plan_render("a cat", frames=9, overrides=settings))


@pytest.mark.parametrize("state", ["paused", "cancelled"])
def test_a_render_that_waits_for_room_is_stopped_as_it_was_asked_to(state, queued, monkeypatch):
    run = RenderRun(queued)

    def full_and_stopped(*_, **__):
        run.stop(state)
        full()

    monkeypatch.setattr(Attempt, "commit", full_and_stopped)
    assert run.run().state == state


def test_a_failure_that_is_survived_is_survived_on_a_full_disk_too(queued, monkeypatch, caplog):
    run = RenderRun(queued)
    with queued.attempt() as run._attempt:
        with monkeypatch.context() as patch:
            patch.setattr(JournalWriter, "append", full)
            run._hear("stage 2 was lost")
        run._hear("stage 3 was lost")
    assert "'repair' of render" in caplog.text
    (event,) = (e for e in JournalReader(queued.path / "journal").poll() if "reason" in e)
    assert event["reason"] == "stage 3 was lost"


def test_that_it_waits_for_room_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(record, "_FULL_POLL_S", 0.0)
    full = [OSError(errno.ENOSPC, "No space left on device")] * 3

    def write():
        if full:
            raise full.pop()

    record.RenderRun(SimpleNamespace(path=Path("/renders/one")))._patiently(write)
    (said,) = caplog.messages
    assert said.startswith("the disk of /renders/one is full, so the render waits, for up to 600 s")


def test_what_the_system_says_of_tensors_is_said_so(tmp_path, monkeypatch):
    said = "Error while serializing: I/O error: No space left on device (os error 28)"

    def save_file(*arguments):
        raise SafetensorError(said)

    monkeypatch.setattr(checkpoints, "save_file", save_file)
    with pytest.raises(OSError, match="No space") as error:
        checkpoints.save_tensors(tmp_path / "a.safetensors", {}, {}, lambda: None)
    assert error.value.errno == errno.ENOSPC
    said = "Error while serializing: header too large"
    with pytest.raises(SafetensorError, match="header"):
        checkpoints.save_tensors(tmp_path / "a.safetensors", {}, {}, lambda: None)
    assert not [*tmp_path.iterdir()]
