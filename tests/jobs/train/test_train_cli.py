"""`longreel train`: what is typed, and what comes back."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from command import longreel

from longreel.configs.train_load import load_training, training_names, training_yaml
from longreel.jobs.train import launch

SMALL = (
    "steps=1000",
    "report.log_every=1",
    "vae.base_dim=2",
    "vae.z_dim=2",
    "vae.until=[1000]",
    "vae.clips=[1]",
    "vae.frames=[5]",
    "vae.long_frames=[0]",
    "vae.crop=[16]",
    "vae.compiled=false",
)


def test_a_dry_run_prints_a_file_that_is_the_same_run():
    done = longreel("train", "shapes-vae", "steps=7", "--dry-run")
    assert done.code == 0
    assert yaml.safe_load(done.out)["steps"] == 7
    assert done.out == training_yaml(load_training("shapes-vae", ["steps=7"]))


def test_a_dry_run_refuses_what_the_run_would(tmp_path):
    done = longreel("train", "shapes", "--dry-run", "dit.pattern=causal", "dit.one_level=0.5")
    assert (done.code, done.out) == (2, "")
    assert "dit.one_level=0.5 would be ignored" in done.err
    (tmp_path / "letters").touch()
    done = longreel("train", "shapes", "--dry-run", f"run.output={tmp_path}")
    assert (done.code, done.out) == (2, "")
    assert "holds files that are not of a training run" in done.err


@pytest.mark.parametrize("name", training_names())
def test_what_ships_loads_and_says_what_it_is(name, tmp_path):
    config = load_training(name)
    assert config.summary
    (tmp_path / "again.yaml").write_text(training_yaml(config))
    assert load_training(str(tmp_path / "again.yaml")) == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shapes-va"], "config=shapes-va is no training we ship"),
        (["none.yaml"], "config=none.yaml cannot be read"),
        (["shapes-vae", "run.thread=2"], "did you mean run.threads?"),
        (["shapes-vae", "steps=many"], "steps=many is not a whole number"),
        (["shapes-vae", "steps"], "write it as key=value"),
        (["shapes-vae", "recipe=vea"], "recipe=vea is nothing we know, so the training cannot"),
        (["shapes-vae", "run.zero_stage=4"], "run.zero_stage=4 is no stage of ZeRO"),
        (["shapes-vae", "run.sequence_ranks=2"], "does not divide run.num_processes=1"),
        (["shapes-vae", "vae.frames=[24]"], "vae.frames or vae.long_frames=24 does not end"),
        (["shapes-vae", "vae.crop=[60]"], "multiple of 8 up to 96"),
        (["shapes-vae", "vae.clips=[1,2]"], "vae.clips has 2 values and vae.until has 1"),
        (["shapes-vae", "vae.encoder=false"], "vae.encoder=false would keep the latents of random"),
        (["shapes-vae", "vae.clips=[0]"], "vae.clips=0 leaves no clip to learn from; set it to"),
        (["shapes-vae", "vae.until=[-1]"], "vae.until=[-1] leaves a phase without a step; set"),
        (["shapes-vae", "vae.noise=nan"], "vae.noise=nan is no noise; set it to a number from 0"),
        (["shapes-vae", "vae.edges=-1"], "vae.edges=-1.0 is no weight in a loss; set it to"),
        (["shapes-vae", "vae.dim_mult=[1,1]"], "so a latent would not be four frames; set it to"),
        (
            ["shapes-vae", "vae.dim_mult=[1,1,1,1,1,1,1]"],
            "makes latents of 128 pixels, and a frame has 96; give fewer",
        ),
        (["shapes", f"dit.clip_latents={10**12}"], "leaves no clip; set it to a number from 1 to"),
        (["shapes", "dit.cache="], "dit.cache is blank, so encoded clips have no folder; name one"),
        (["shapes-live", "live.clip_latents=-1"], "live.clip_latents=-1 leaves no clip; set it to"),
        (["shapes-live", "live.timesteps=[250,500]"], "each smaller than the one before, such as"),
        (["shapes-vae", "run.output= "], "run.output is blank, so the run has no folder; name one"),
        (
            ["shapes-decoder", f"vae.start={'x' * 300}"],
            "is no folder, so there is nothing to go on",
        ),
        (["shapes-vae", "run.zero_stage=1"], "optimizer.kind=muon moves whole matrices"),
        (["shapes", "dit.longest=30"], "dit.longest=30 and dit.clip_latents=25 leave no window"),
        (["shapes", "dit.pattern=stair"], "dit.pattern=stair is nothing we know"),
        (["shapes", "dit.compiled=maybe"], "dit.compiled=maybe is not true or false"),
        (
            ["shapes-live", "live.chunks=9"],
            "live.chunks=9 of 3 latents are more than live.clip_lat",
        ),
        (["shapes-vae", "recipe=finetune"], "set both"),
        (
            ["shapes", "vae.start=a"],
            "vae.start=a would be ignored, as recipe=dit does not read it; leave it out, or set",
        ),
        (["shapes-live", "data.frames=5"], "data.frames=5 would be ignored, as recipe=live does"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = longreel("train", *arguments)
    assert done.code == 2
    assert message in done.message
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_zero_is_refused_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("longreel.parallel.zero.find_spec", lambda name: None)
    zero = ("optimizer.kind=adamw", "run.zero_stage=1")
    done = longreel("train", "shapes-vae", *zero, f"run.output={tmp_path / 'run'}")
    assert done.code == 2
    assert "pip install -e '.[train]'" in done.message
    assert not (tmp_path / "run").exists()


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-P", "-c", "from longreel.jobs.cli import main; main()"]
    process = subprocess.Popen(
        [*command, "train", "shapes-vae", *SMALL, f"run.output={tmp_path / 'run'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "error::UserWarning"},
    )
    log = Path(tmp_path / "run/log.jsonl")
    deadline = time.monotonic() + 100
    while not log.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "run the same command again to go on" in out
    assert err == ""
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    assert not checkpoint.name.startswith(".")


def test_gpus_that_are_not_there_are_said_so(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"run\.device=cuda finds no GPU"):
        launch.train(load_training("shapes-vae", ["run.device=cuda", f"run.output={tmp_path}/r"]))


@pytest.mark.parametrize("name", ["shapes-vae", "shapes"])
def test_without_a_compiler_nothing_is_compiled_in_secret(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("longreel.jobs.train.recipes.which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    done = longreel("train", name)
    assert done.code == 2
    assert ".compiled=true needs a C++ compiler" in done.message
    assert list(tmp_path.iterdir()) == []
