"""Checkpoints are a help: whatever keeps them from the disk is told, and the frames are made."""

import logging
import re

import pytest
from safetensors import SafetensorError
from tiny_blocks import overrides, shallow

from longreel.jobs.home import checkpoints
from longreel.jobs.home.home import Home
from longreel.jobs.home.journal import JournalReader
from longreel.jobs.home.record import RenderRun
from longreel.jobs.render import plan_render


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error"), SafetensorError("bug"), OSError(5, "io")]
)
def test_an_error_of_one_checkpoint_is_told_and_the_next_is_saved(
    tiny_archs, tmp_path, monkeypatch, caplog, error
):
    save, failed = checkpoints.CheckpointFolder.save, []

    def fails_twice(folder, number, checkpoint):
        if len(failed) < 2:
            failed.append(number)
            raise error
        return save(folder, number, checkpoint)

    monkeypatch.setattr(checkpoints.CheckpointFolder, "save", fails_twice)
    more = shallow("causal"), "model.device=cpu", "checkpoint.every_s=0"
    settings = overrides("causal", *more)
    plan = plan_render("a red circle", frames=65, overrides=settings)
    folder = Home(tmp_path).create(plan)
    with caplog.at_level(logging.WARNING, "longreel"):
        assert RenderRun(folder).run().state == "done"
    events = JournalReader(folder.path / "journal").poll()
    assert [event["event"] for event in events].count("checkpoint") > 0
    reasons = [event["reason"] for event in events if event["event"] == "repair"]
    assert len(reasons) == 1  # what failed twice in the same way
    assert re.match(r"a checkpoint cannot be saved \(.*(CUDA error|bug|io)", reasons[0])
    told = [record for record in caplog.records if "cannot be saved" in record.message]
    assert len(told) == 2
    has_trace = bool(told[0].exc_info)
    assert has_trace != isinstance(error, OSError)
