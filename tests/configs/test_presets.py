"""Presets say only what is theirs, and say it of models that exist."""

from pathlib import Path

import pytest
import yaml

from longreel.configs import load
from longreel.configs.fields import fields
from longreel.configs.files import read_settings
from longreel.configs.load import load_config, preset_names, preset_summaries
from longreel.configs.schema import Config
from longreel.models.arch import ARCHS

FOLDER = Path(load.__file__).parent


def default_of(key):
    value = Config()
    for name in key.split("."):
        value = getattr(value, name)
    return value


def test_the_promised_presets_are_there():
    assert set(preset_names()) >= {
        "tiny",
        "shapes",
        "shapes-live",
        "wan2.1-t2v-1.3b",
        "wan2.1-t2v-14b",
        "wan2.1-i2v-14b",
        "wan2.1-i2v-14b-720p",
        "wan2.1-flf2v-14b",
        "wan2.2-t2v-a14b",
        "wan2.2-i2v-a14b",
        "wan2.2-ti2v-5b",
        "skyreels-v2-df-1.3b",
        "skyreels-v2-df-14b",
        "self-forcing-1.3b",
        "longlive-1.3b",
    }


@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_names_only_what_differs(preset):
    for key, value in read_settings(FOLDER / f"{preset}.yaml").items():
        default = default_of(key)
        assert value != (list(default) if isinstance(default, tuple) else default), key


@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_loads_as_plain_yaml_reads_it(preset):
    config = load_config(preset)
    values = yaml.safe_load((FOLDER / f"{preset}.yaml").read_text(encoding="utf-8"))
    assert config.preset == preset
    for key in fields():
        read, loaded = values, config
        for name in key.split("."):
            read = read.get(name) if read else None
            loaded = getattr(loaded, name)
        if key != "preset":
            expected = default_of(key) if read is None else read
            assert loaded == (tuple(expected) if isinstance(expected, list) else expected), key


@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_is_of_a_model_we_know(preset):
    config = load_config(preset)
    arch = ARCHS[config.model.arch]
    assert (arch.num_experts == 2) == (config.model.boundary > 0)
    assert (config.video.frames - 1) % arch.vae.time_stride == 0
    for side, patch in zip(("height", "width"), arch.dit.patch[1:], strict=True):
        assert getattr(config.video, side) % (arch.vae.space_stride * patch) == 0


def test_summaries_are_single_short_lines():
    summaries = dict(preset_summaries())
    assert list(summaries) == preset_names()
    for name, summary in summaries.items():
        assert 10 < len(summary) < 90, name
        assert "\n" not in summary
        assert summary == load_config(name).summary


def test_the_negative_prompt_is_the_published_one_everywhere():
    """One text in ten files: Wan's, in 2.1 with camera shake before it for image to video, and
    with a cut before that for first and last frame."""
    shared = load_config("wan2.1-t2v-1.3b").sampling.negative_prompt
    assert shared.startswith("色调艳丽，过曝，静态，")
    assert shared.endswith("背景人很多，倒着走")
    none = {"tiny", "shapes", "shapes-live", "self-forcing-1.3b", "longlive-1.3b"}
    for name in preset_names():
        expected = "" if name in none else shared
        if name.startswith(("wan2.1-i2v", "wan2.1-flf2v")):
            expected = "镜头晃动，" + shared
        if "-flf2v-" in name:
            expected = "镜头切换，" + expected
        assert load_config(name).sampling.negative_prompt == expected, name


# preset: steps, shift, guidance, its low-noise expert's, boundary, fps, frames, height, width
PUBLISHED = {
    "wan2.1-t2v-1.3b": (50, 8.0, 6.0, None, 0.0, 16, 81, 480, 832),
    "wan2.1-t2v-14b": (50, 5.0, 5.0, None, 0.0, 16, 81, 720, 1280),
    "wan2.1-i2v-14b": (40, 3.0, 5.0, None, 0.0, 16, 81, 480, 832),
    "wan2.1-i2v-14b-720p": (40, 5.0, 5.0, None, 0.0, 16, 81, 720, 1280),
    "wan2.1-flf2v-14b": (50, 16.0, 5.0, None, 0.0, 16, 81, 720, 1280),
    "wan2.2-t2v-a14b": (40, 12.0, 4.0, 3.0, 0.875, 16, 81, 720, 1280),
    "wan2.2-i2v-a14b": (40, 5.0, 3.5, None, 0.9, 16, 81, 720, 1280),
    "wan2.2-ti2v-5b": (50, 5.0, 5.0, None, 0.0, 24, 121, 704, 1280),
    "skyreels-v2-df-1.3b": (30, 8.0, 6.0, None, 0.0, 24, 97, 544, 960),
    "skyreels-v2-df-14b": (30, 8.0, 6.0, None, 0.0, 24, 97, 544, 960),
    "self-forcing-1.3b": (4, 5.0, 1.0, None, 0.0, 16, 81, 480, 832),
    "longlive-1.3b": (4, 5.0, 1.0, None, 0.0, 16, 477, 480, 832),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_numbers_do_not_move_with_our_defaults(preset):
    config = load_config(preset)
    sampling, video = config.sampling, config.video
    assert PUBLISHED[preset] == (
        sampling.steps,
        sampling.shift,
        sampling.guidance,
        sampling.guidance_low,
        config.model.boundary,
        video.fps,
        video.frames,
        video.height,
        video.width,
    )
    assert config.model.vae_dtype == "float32"
