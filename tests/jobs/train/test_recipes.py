"""What a recipe lacks is said before a run's folder is made."""

import pytest

from longreel.configs.train_load import load_training
from longreel.jobs.train.launch import train


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("shapes", ["dit.vae="], r"^dit\.vae= is no folder.*longreel train shapes-vae"),
        ("shapes", ["dit.vae={tmp}/none"], r"^dit\.vae=.*/none is no folder"),
        ("shapes", ["dit.vae={tmp}", "dit.arch=shpes"], r"^dit\.arch=shpes.*shapes"),
        ("shapes", ["dit.start={tmp}/none"], r"^dit\.start=.*/none.*longreel train shapes"),
        ("shapes-live", ["live.start={tmp}/none"], r"^live\.start=.*longreel train shapes"),
        ("shapes", ["dit.start={tmp}"], r"^dit\.start=.* has no transformer"),
        ("shapes-live", ["live.start={tmp}"], r"^live\.start=.* has no transformer"),
        ("shapes-decoder", ["vae.start={tmp}/none"], r"^vae\.start=.*/none is no folder"),
        ("shapes-decoder", ["vae.start={tmp}"], r" holds no weights"),
        (
            "shapes-live",
            ["live.start={tmp}", "live.arch=shapes"],
            r"^live\.arch=shapes is no causal model.*shapes-live",
        ),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_left_behind(name, overrides, words, tmp_path):
    there = [override.format(tmp=tmp_path) for override in overrides]
    output = tmp_path / "run"
    config = load_training(name, [*there, f"run.output={output}"])
    with pytest.raises(ValueError, match=words):
        train(config)
    assert not output.exists()
