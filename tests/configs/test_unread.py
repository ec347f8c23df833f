"""What is asked for and would be read by nobody is refused by its name, and nothing else is."""

import re

import pytest

from longreel.configs.load import load_config, preset_names, to_yaml
from longreel.configs.train_load import load_training

SHAPES, LIVE = "shapes", "shapes-live"


@pytest.mark.parametrize(
    ("preset", "overrides", "words"),
    [
        (SHAPES, ["output.format=png", "output.crf=20"], "output.crf=20 .*=png .* does: mp4"),
        (SHAPES, ["output.format=png", "output.encoder_preset=slow"], "encoder_preset=slow .*=png"),
        (SHAPES, ["output.format=png", "output.pixel_format=yuv444p"], "=yuv444p .*=png does not"),
        (LIVE, ["sampling.guidance=7"], "sampling.guidance=7.0 .*guidance_mode=none .*sequential"),
        (LIVE, ["sampling.guidance=5"], "sampling.guidance=5.0 .*guidance_mode=none"),
        (LIVE, ["sampling.negative_prompt=blurry"], "sampling.negative_prompt=blurry .*=none"),
        (SHAPES, ["sampling.guidance_mode=none", "sampling.guidance_to=0.5"], "guidance_to=0.5"),
        (SHAPES, ["sampling.guidance_mode=none", "sampling.guidance_from=0.9"], "from=0.9 would"),
        (SHAPES, ["sampling.guidance=1", "sampling.negative_prompt=blurry"], "=1 guides no step"),
        ("wan2.2-t2v-a14b", ["sampling.guidance_mode=none", "sampling.guidance_low=2"], "low=2.0"),
        (SHAPES, ["parallel.backend=local", "parallel.repairs=0"], "repairs=0 .*does: auto, ray"),
        (SHAPES, ["parallel.backend=local", "parallel.link=host"], "parallel.link=host .*=local"),
        (SHAPES, ["attention.builder=pooled", "attention.mass=0.9", "attention.keep=0.3"], "keep="),
        (SHAPES, ["attention.builder=local", "attention.backend=sdpa"], "=local leaves no step"),
    ],
)
def test_what_a_render_would_ignore_is_refused(preset, overrides, words):
    with pytest.raises(ValueError, match=rf"{words}.*") as caught:
        load_config(preset, overrides)
    asked = overrides[-1].partition("=")[0]
    assert re.match(rf"{re.escape(asked)}=\S+ would be ignored, as .*; leave", str(caught.value))


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize(
    "override", ["sampling.guidance_mode=none", "sampling.guidance=1", "output.format=png"]
)
def test_what_a_preset_brings_was_asked_by_nobody(preset, override, tmp_path):
    more = ["sampling.guidance_low=1"] if preset.endswith("a14b") and "=1" in override else []
    config = load_config(preset, [override, *more])
    shown = tmp_path / "shown.yaml"
    shown.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(str(shown)) == config


def test_what_a_file_of_one_s_own_asks_for_is_refused_too(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("preset: shapes-live\nsampling:\n  guidance: 7\n")
    with pytest.raises(ValueError, match=r"^sampling\.guidance=7\.0 would be ignored"):
        load_config(str(mine))
    mine.write_text("output:\n  format: png\n  crf: 9\n")
    with pytest.raises(ValueError, match=r"^output\.crf=9 would be ignored"):
        load_config(str(mine))


FINETUNE = ["recipe=finetune", "finetune.checkpoint=a", "data.folder=b", "finetune.method=full"]


@pytest.mark.parametrize(
    ("training", "overrides", "words"),
    [
        ("mine", [*FINETUNE, "finetune.rank=8"], "finetune.rank=8 .* does: lora"),
        ("shapes", ["vae.start=a"], "vae.start=a .*recipe=dit .* recipe to one that does: vae"),
        ("shapes-decoder", ["vae.alike=0.2"], "vae.alike=0.2 .*vae.encoder=false .*: true"),
        ("shapes-decoder", ["vae.size=0.2"], "vae.size=0.2 .*vae.encoder=false"),
        ("shapes", ["dit.pattern=stairs", "dit.one_level=0.2"], "dit.one_level=0.2 .*=stairs"),
    ],
)
def test_what_a_training_would_ignore_is_refused(training, overrides, words, tmp_path):
    name = training
    if FINETUNE[0] in overrides:
        name = tmp_path / "mine.yaml"
        name.write_text("recipe: vae\n")
    with pytest.raises(ValueError, match=f"{words}.*") as caught:
        load_training(str(name), overrides).check_asked()
    assert " would be ignored, as " in str(caught.value)
