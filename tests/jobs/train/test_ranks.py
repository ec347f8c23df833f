"""Several processes train what one would on all their batches, whole or spread by ZeRO."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from forked_ranks import fork_ranks
from processes import ended_with_us
from server import until
from toy_recipe import ToyRecipe, build_bad, build_fragile, build_toy

from longreel.configs.train_schema import OptimizerConfig, ReportConfig, RunConfig, TrainConfig
from longreel.jobs.train.errors import TrainingError
from longreel.jobs.train.launch import train
from longreel.jobs.train.rates import learning_rate
from longreel.jobs.train.trainer import seed_step

STEPS, RANKS = 6, 2
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="the extra train is not installed"
)
STAGES = [
    0,
    pytest.param(1, marks=needs_deepspeed),
    *(pytest.param(stage, marks=[needs_deepspeed, pytest.mark.slow]) for stage in (2, 3)),
]


@pytest.fixture(autouse=True)
def _forked(monkeypatch):
    # DeepSpeed imports it when an engine is made, and with it torch's compiler
    fork_ranks(monkeypatch, "deepspeed.runtime.zero.muon.muon_optimizer")


def config(folder, stage=0, steps=STEPS, num=RANKS, **report):
    return TrainConfig(
        steps=steps,
        run=RunConfig(
            output=str(folder), dtype="float32", num_processes=num, zero_stage=stage, device="cpu"
        ),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup=3, ema=0.9, clip=0.5),
        report=ReportConfig(log_every=2, sheet_every=4, **{"save_every": 3} | report),
    )


def exported(folder):
    return torch.load(folder / "model" / "toy.pt")


@pytest.fixture(scope="module")
def reference():
    """Averaged weights after a plain loop over both ranks' batches."""
    optimizer = config("unused").optimizer
    recipe = ToyRecipe(0)
    weights = [p for p in recipe.model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(weights, betas=(0.9, 0.99), weight_decay=0.0)
    average = [w.detach().clone() for w in weights]
    for step in range(STEPS):
        adamw.zero_grad()
        for rank in range(RANKS):
            seed_step(0, step, rank)
            (recipe.model(**recipe.batch(step, rank, RANKS))[0] / RANKS).backward()
        torch.nn.utils.clip_grad_norm_(weights, 0.5)
        adamw.param_groups[0]["lr"] = learning_rate(optimizer, step, STEPS)
        adamw.step()
        decay = min(0.9, (1 + step) / (10 + step))
        average = [
            decay * a + (1 - decay) * w.detach() for a, w in zip(average, weights, strict=True)
        ]
    names = [name for name, p in recipe.model.named_parameters() if p.requires_grad]
    return dict(zip(names, average, strict=True))


def check_is(made, reference):
    for name, expected in reference.items():
        # Adam divides by the root of squared gradients: where those are near zero, the order in
        # which ranks' gradients are added shows in the last digits of a step of 3e-3
        torch.testing.assert_close(made[name], expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_train_what_one_would_and_go_on_bit_for_bit(tmp_path, stage, reference):
    assert train(config(tmp_path / "run", stage), build_toy)
    straight = exported(tmp_path / "run")
    check_is(straight, reference)

    # as if it had been killed after its checkpoint at half the way
    checkpoints = sorted((tmp_path / "run/checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["step-00000003", "step-00000006"]
    checkpoints[1].rename(tmp_path / "gone")
    (tmp_path / "run/model/toy.pt").unlink()
    assert train(config(tmp_path / "run", stage), build_toy)
    again = exported(tmp_path / "run")
    assert all(torch.equal(straight[name], again[name]) for name in straight)


@needs_deepspeed
def test_zero_needs_no_launcher_and_one_training_may_follow_another(tmp_path, monkeypatch):
    """Of one process, which is what learns, whoever asks."""
    monkeypatch.delenv("DS_ACCELERATOR")  # of this process
    before = dict(os.environ)
    for name in ("first", "second"):
        assert train(config(tmp_path / name, 1, num=1), build_toy)
    assert os.environ == before
    assert train(config(tmp_path / "whole", num=1), build_toy)
    for name in ("first", "second"):
        check_is(exported(tmp_path / name), exported(tmp_path / "whole"))


def test_a_loss_lost_on_the_ranks_ends_them_all_with_the_reason(tmp_path):
    with pytest.raises(TrainingError, match="loss of step 3 is no longer finite"):
        train(config(tmp_path), build_bad)


def test_a_rank_that_dies_ends_the_run_and_is_named(tmp_path, capfd):
    started = time.monotonic()
    with pytest.raises(TrainingError, match=r"process \d of 2 ended before its time.*7"):
        train(config(tmp_path), build_fragile)
    assert time.monotonic() - started < 100


def test_ctrl_c_on_the_parent_stops_all_ranks_with_one_checkpoint(tmp_path):
    settings = config(tmp_path, steps=100_000, save_every=100_000)

    def stop():
        log = Path(tmp_path, "log.jsonl")
        deadline = time.monotonic() + 100
        while not log.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=stop)
    watcher.start()
    assert not train(settings, build_toy)
    watcher.join()
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    step = json.loads((checkpoint / "state.json").read_text())["step"]
    assert 2 <= step < 100_000
    assert {path.name for path in checkpoint.glob("ema-*")} == {"ema-0.pt", "ema-1.pt"}


ORPHANS = """
import sys
from longreel.configs.train_schema import ReportConfig, RunConfig, TrainConfig
from longreel.jobs.train.launch import train
from toy_recipe import build_toy
run = RunConfig(output=sys.argv[1], dtype="float32", num_processes=2, device="cpu")
train(TrainConfig(steps=100_000, run=run, report=ReportConfig(log_every=2)), build_toy)
"""


def test_ranks_of_a_parent_that_is_killed_end_with_a_checkpoint(tmp_path):
    """And until they have, nobody else trains in their folder. Spawned, as a user's are."""
    support = Path(__file__).parents[2] / "support"
    command = [sys.executable, "-P", "-c", ORPHANS, str(tmp_path / "run")]
    parent = subprocess.Popen(ended_with_us(command), env=os.environ | {"PYTHONPATH": str(support)})
    log = tmp_path / "run" / "log.jsonl"
    try:
        until(log.exists, bool)
        settings = config(tmp_path / "run")
        with pytest.raises(ValueError, match="being trained by another process"):
            train(replace(settings, steps=100_000, optimizer=OptimizerConfig()), build_toy)
    finally:
        parent.kill()
        parent.wait()

    def checkpoints():
        return [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")]

    until(checkpoints, bool, within_s=100)
    size = until(log.stat, lambda stat: time.time() - stat.st_mtime > 2, within_s=100).st_size
    time.sleep(1)
    assert log.stat().st_size == size
