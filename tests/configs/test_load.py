"""Presets and overrides become one frozen Config, or an error that says what to write instead."""

import dataclasses

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from longreel.configs import load
from longreel.configs.files import load_yaml
from longreel.configs.load import DEFAULT_PRESET, load_config, preset_names, to_yaml
from longreel.configs.schema import Config, ModelConfig, SamplingConfig


def message(preset=None, overrides=()):
    try:
        load_config(preset, overrides)
    except ValueError as error:
        return str(error)
    pytest.fail("no error")


def write(folder, text):
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_no_preset_means_the_default_one():
    assert load_config() == load_config(DEFAULT_PRESET)


def test_an_override_changes_its_field_and_no_other():
    config = load_config(overrides=["sampling.steps=3", "sampling.shift=1e-3", " video.fps = 24 "])
    plain = load_config()
    assert config == dataclasses.replace(
        plain,
        sampling=dataclasses.replace(plain.sampling, steps=3, shift=0.001),
        video=dataclasses.replace(plain.video, fps=24),
    )


def test_a_preset_is_read_once_and_stays_as_it_is(monkeypatch):
    """A server plans every request from one."""
    before = load_config("self-forcing-1.3b")
    monkeypatch.setattr(load, "read_settings", None)
    steps = "sampling.timesteps=[1000,500]", "sampling.steps=2"
    assert load_config("self-forcing-1.3b", steps).sampling.timesteps == (1000, 500)
    assert load_config("self-forcing-1.3b") == before


def test_the_last_override_of_a_field_wins():
    assert load_config(overrides=["sampling.steps=3", "sampling.steps=4"]).sampling.steps == 4


def test_what_comes_out_is_frozen_and_can_be_a_key():
    config = load_config("self-forcing-1.3b")
    assert type(config.sampling.timesteps) is tuple
    assert hash(config) == hash(load_config("self-forcing-1.3b"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.sampling.steps = 1


def test_null_takes_a_value_away():
    config = load_config("wan2.2-t2v-a14b", ["sampling.guidance_low=null"])
    assert config.sampling.guidance_low is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("[1000,750]", (1000, 750)), ("[ 1000, 1 ]", (1000, 1)), ("[500]", (500,))],
)
def test_a_list_becomes_a_tuple(text, expected):
    overrides = [f"sampling.timesteps={text}", f"sampling.steps={len(expected)}"]
    config = load_config(overrides=["sampling.solver=renoise", *overrides])
    assert config.sampling.timesteps == expected


def test_an_empty_list_empties_the_field():
    changes = ["sampling.timesteps=[]", "sampling.solver=euler"]
    assert load_config("self-forcing-1.3b", changes).sampling.timesteps == ()


def test_numbers_are_decimal_whatever_yaml_makes_of_them():
    assert load_config(overrides=["video.frames=010"]).video.frames == 10
    assert "is not a whole number" in message(overrides=["video.frames=1:30"])


@pytest.mark.parametrize(
    "text",
    [
        "blur, grain: heavy",
        "色调艳丽，过曝，静态",
        "a=b=c",
        "null",
        "[1, 2]",
        "{a: b}",
        "???",
        "  spaces ",
        "",
        "# no comment",
        "${oc.env:HOME}",
        "${video.frames}",
        "an unclosed ${",
        "\\${x}",
        "'quoted'",
    ],
)
def test_text_is_taken_as_it_is(text):
    config = load_config(overrides=[f"sampling.negative_prompt={text}"])
    assert config.sampling.negative_prompt == text


@example("next\x85line\u2028line\u2029paragraph\nline\rreturn")
@settings(max_examples=15, deadline=None)  # a tenth of a second each
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))  # refused
def test_any_text_survives_an_override_and_a_file(tmp_path_factory, text):
    config = load_config(overrides=[f"sampling.negative_prompt={text}"])
    assert config.sampling.negative_prompt == text
    path = write(tmp_path_factory.getbasetemp(), to_yaml(config))
    assert load_config(path) == config


@pytest.mark.parametrize("preset", preset_names())
def test_what_to_yaml_writes_holds_every_field_and_loads_again(tmp_path, preset):
    config = load_config(preset, ["video.fps=30"])
    text = to_yaml(config)
    assert yaml.safe_load(text) == {
        **dataclasses.asdict(config),
        "sampling": {
            **dataclasses.asdict(config.sampling),
            "timesteps": list(config.sampling.timesteps),
        },
        "attention": {
            **dataclasses.asdict(config.attention),
            "window": list(config.attention.window),
        },
    }
    assert load_config(write(tmp_path, text)) == config


def test_a_file_changes_the_defaults(tmp_path):
    config = load_config(write(tmp_path, "video:\n  frames: 33\nsampling:\n  # nothing yet\n"))
    assert config == Config(video=dataclasses.replace(Config().video, frames=33))


def test_a_file_can_start_from_a_preset(tmp_path):
    config = load_config(write(tmp_path, "preset: wan2.1-t2v-14b\nsampling:\n  steps: 20\n"))
    assert config == load_config("wan2.1-t2v-14b", ["sampling.steps=20"])


def test_the_environment_changes_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("STEPS", "3")
    assert "is not a whole number" in message(overrides=["sampling.steps=${oc.env:STEPS}"])
    path = write(tmp_path, "sampling:\n  steps: ${oc.env:STEPS}\n")
    assert "sampling.steps=${oc.env:STEPS} is not a whole number" in message(path)


def test_a_home_folder_is_understood(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "video:\n  frames: 33\n")
    assert load_config("~/mine.yaml").video.frames == 33


def test_an_unknown_preset_names_the_nearest_and_all():
    text = message("wan2.1-t2v-1.3")
    assert text.startswith("preset=wan2.1-t2v-1.3 is no preset")
    assert "did you mean wan2.1-t2v-1.3b?" in text
    assert all(name in text for name in preset_names())


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("sampling.step=4", "sampling.steps"),
        ("steps=4", "sampling.steps"),
        ("stpes=4", "sampling.steps"),
        ("num_stage=4", "parallel.num_stages"),
        ("video.steps=4", "sampling.steps"),
        ("sampling.negative=x", "sampling.negative_prompt"),
        ("vidoe.frames=9", "video.frames"),
        ("sampling.timesteps.0=9", "sampling.timesteps"),
    ],
)
def test_an_unknown_key_names_the_nearest(override, near):
    key = override.partition("=")[0]
    text = message(overrides=[override])
    assert text.startswith(f"{override} sets no field we have")
    assert text.endswith(f"did you mean {near}?")
    assert key != near


def test_what_a_render_has_beside_its_configuration_is_given_there():
    assert message(overrides=["seed=3"]).endswith("--seed, or seed= of a call or a request")
    assert "--prompt-at, or prompt_at=" in message(overrides=["prompt_at=3"])


def test_a_key_like_none_lists_them_all():
    assert "the fields are" in message(overrides=["zzz=1"])
    assert "output.encoder_preset" in message(overrides=["zzz=1"])


def test_an_override_without_a_value_says_how_to_write_one():
    assert message(overrides=["video.frames"]) == (
        "override 'video.frames' sets nothing; write it as key=value"
    )


def test_a_group_is_not_a_field():
    assert "sampling=3 is a whole group; set its fields" in message(overrides=["sampling=3"])


def test_the_preset_is_not_an_override():
    assert "comes too late" in message(overrides=["preset=wan2.1-t2v-14b"])


@pytest.mark.parametrize(
    ("override", "kind", "example"),
    [
        ("sampling.steps=8.5", "a whole number", "sampling.steps=8"),
        ("sampling.steps=true", "a whole number", "sampling.steps=8"),
        ("sampling.steps=null", "a whole number", "sampling.steps=8"),
        ("sampling.steps=", "a whole number", "sampling.steps=8"),
        ("sampling.steps=???", "a whole number", "sampling.steps=8"),
        ("sampling.steps=" + "9" * 5000, "a whole number", "sampling.steps=8"),
        ("sampling.shift=five", "a number", "sampling.shift=0.5"),
        ("sampling.shift=null", "a number", "sampling.shift=0.5"),
        ("sampling.guidance_low=low", "a number or null", "sampling.guidance_low=3.0"),
        ("sampling.timesteps=1000", "a list of whole numbers", "sampling.timesteps=[1000,750,500"),
        ("sampling.timesteps=[9.5]", "a list of whole numbers", "sampling.timesteps=[1000,750,500"),
        ("sampling.timesteps=[9,]", "a list of whole numbers", "sampling.timesteps=[1000,750,500"),
        ("sampling.timesteps=[${x}]", "a list of whole numbers", "sampling.timesteps=[1000,750,5"),
    ],
)
def test_a_value_of_the_wrong_type_gives_the_type_and_an_example(override, kind, example):
    text = message(overrides=[override])
    assert text.startswith(
        f"{override} is not {kind}, so it cannot be used; write it like {example}"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sampling:\n  stpes: 3\n", "sampling.stpes=3 sets no field we have"),
        ("sampling:\n  negative_prompt: no\n", "sampling.negative_prompt=false is not text"),
        ("summary:\n", "summary=null is not text"),
        ('model:\n  text_cache: "a\\0b"\n', r"model.text_cache='a\x00b' holds a NUL character"),
        ("video:\n  fps: true\n", "video.fps=true is not a whole number"),
        ("video:\n  fps: 24\nvideo:\n  width: 64\n", "sets video twice"),
        ("video:\n  fps: 24\n  fps: 16\n", "sets fps twice"),
        ("video.fps: 24\nvideo:\n  fps: 16\n", "sets video.fps twice"),
        ("? [video]\n: 24\n", "is not YAML"),
        ("video: [\n", "is not YAML"),
        ("a\n", "holds no fields"),
        ("", "holds no fields"),
        ("5: 6\n", "5=6 sets no field we have"),
        ("preset: nonsense-42\n", "preset=nonsense-42 is no preset"),
        ("preset: other.yaml\n", "preset=other.yaml is no preset"),
        ("? [a, b]\n: 1\n", "is not YAML"),
        ("video: !!map x\n", "is not YAML"),
        ("!!map x: 1\n", "is not YAML"),
    ],
)
def test_a_broken_file_is_explained(tmp_path, text, expected):
    assert expected in message(write(tmp_path, text))


def test_what_a_file_merges_may_be_set_once_more():
    """Also where it is merged a second time, before its own turn comes."""
    text = "a: &a {fps: 8}\nb: {c: &c {<<: *a, fps: 9}}\nd: {<<: *c, width: 1}\n"
    assert load_yaml(text) == yaml.safe_load(text)


def test_an_absent_or_unreadable_file_is_explained(tmp_path):
    assert "No such file" in message(str(tmp_path / "none.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    assert "cannot be read" in message(str(tmp_path / "folder.yaml"))
    (tmp_path / "latin.yaml").write_bytes(b"summary: \xe9\n")
    assert "UTF-8" in message(str(tmp_path / "latin.yaml"))


def test_checks_see_overrides_together_and_not_one_by_one():
    few = ["sampling.timesteps=[900]", "sampling.steps=1", "sampling.solver=renoise"]
    config = load_config("tiny", few)
    assert config.sampling == SamplingConfig(solver="renoise", steps=1, timesteps=(900,))
    assert config.model == ModelConfig()
