"""Each part of a checkpoint is found bad by its headers, and read alike from every layout."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_image
import tiny_original
import tiny_pipeline
import tiny_text
import torch
from command import files_in, forbid_loading, longreel
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_wan import diffusers_model

from longreel.jobs.render import plan_render, stream_chunks
from longreel.models import arch as archs
from longreel.models.vae_build import random_vae
from longreel.pipeline.parts import check_parts

PROMPT = "a red cat walks slowly on the grass"
SELF_FORCING = (
    "sampling.solver=renoise",
    "sampling.steps=4",
    "sampling.timesteps=[1000,750,500,250]",
    "sampling.guidance_mode=none",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint of every test arch that is asked for, written once."""
    made = {}

    def write(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = tiny_pipeline.write_checkpoint(folder, tiny_pipeline.ARCHS[name])
        return made[name]

    return write


@pytest.fixture
def checkpoint(written, tmp_path, monkeypatch):
    """A copy to spoil; it knows its arch."""
    for name, arch in tiny_pipeline.ARCHS.items():
        monkeypatch.setitem(archs.ARCHS, name, arch)

    def copy(name):
        folder = tmp_path / "checkpoint"
        shutil.copytree(written(name).folder, folder)
        return folder

    return copy


def _plan(arch, checkpoint, *overrides, frames=5, image=None):
    return plan_render(
        PROMPT,
        frames=frames,
        image=image,
        overrides=[
            f"model.arch={arch}",
            f"model.checkpoint={checkpoint}",
            "model.text_cache=",
            "video.height=32",
            "video.width=48",
            "sampling.steps=3",
            *overrides,
        ],
    )


def _frames(plan):
    return np.concatenate([chunk.frames for chunk in stream_chunks(plan)])


def _picture(tmp_path, height=32, width=48):
    path = tmp_path / "first.png"
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def _weights_of(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def _remove(folder: Path) -> None:
    shutil.rmtree(folder)


def _cut(folder: Path) -> None:
    path = _weights_of(folder)
    path.write_bytes(path.read_bytes()[:-100])


def _drop_one_tensor(folder: Path) -> None:
    path = _weights_of(folder)
    state = load_file(path)
    state.pop(sorted(state)[-1])
    save_file(state, path)


def _other_model(folder: Path) -> None:
    shutil.rmtree(folder)
    if folder.name.startswith("transformer"):
        arch = dataclasses.replace(tiny_pipeline.ARCHS["test-t2v"].dit, num_layers=1)
        diffusers_model(arch).save_pretrained(folder)
    elif folder.name == "vae":
        random_vae(archs.VaeArch(base_dim=8, num_res_blocks=1), seed=1).save_pretrained(folder)
    elif folder.name == "text_encoder":
        tiny_text.write_text_encoder(folder, 2 * tiny_pipeline.TEXT_DIM)
    else:
        tiny_image.write_image_encoder(folder, 2 * tiny_pipeline.IMAGE_DIM)


WEIGHTS = ["transformer", "transformer_2", "vae", "text_encoder", "image_encoder"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_remove, ["model.checkpoint=", "has no {part} in", "complete the download"]),
        (_cut, ["{part}/", "is truncated: expected", "download it again"]),
        (_drop_one_tensor, ["{part}", "does not fit the model", "1 missing", "set model.arch"]),
        (_other_model, ["{part}", "model.arch", "model", "set model."]),
    ],
)
@pytest.mark.parametrize("part", WEIGHTS)
def test_a_bad_part_is_named_before_anything_is_loaded(
    checkpoint, tmp_path, monkeypatch, part, spoil, words
):
    arch = {"transformer_2": "test-a14b", "image_encoder": "test-i2v"}.get(part, "test-t2v")
    folder = checkpoint(arch)
    image = _picture(tmp_path) if arch == "test-i2v" else None
    plan = _plan(
        arch, folder, *(["model.boundary=0.8"] if arch == "test-a14b" else []), image=image
    )
    spoil(folder / part)
    forbid_loading(monkeypatch)
    with pytest.raises(ValueError) as error:  # noqa: PT011, the words below say which
        stream_chunks(plan)
    message = str(error.value)
    assert [word for word in words if word.format(part=part) not in message] == []


@pytest.mark.parametrize("part", ["tokenizer", "image_processor"])
def test_a_part_without_weights_must_be_there_too(checkpoint, tmp_path, monkeypatch, part):
    folder = checkpoint("test-i2v")
    plan = _plan("test-i2v", folder, image=_picture(tmp_path))
    _remove(folder / part)
    forbid_loading(monkeypatch)
    with pytest.raises(ValueError, match=rf"^model\.checkpoint=.* has no {part} in .*complete"):
        stream_chunks(plan)


def test_an_image_processor_that_cannot_be_read_is_found_before_anything_is_loaded(
    checkpoint, tmp_path, monkeypatch
):
    folder = checkpoint("test-i2v")
    plan = _plan("test-i2v", folder, image=_picture(tmp_path))
    (folder / "image_processor" / "preprocessor_config.json").write_text("{")
    forbid_loading(monkeypatch)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json is not there or not readable"):
        stream_chunks(plan)


def test_a_tokenizer_that_cannot_be_read_is_found_before_anything_is_loaded(
    checkpoint, monkeypatch
):
    folder = checkpoint("test-t2v")
    plan = _plan("test-t2v", folder)
    path = folder / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text()[:-20])
    forbid_loading(monkeypatch)
    with pytest.raises(ValueError, match=r"the tokenizer in .*tokenizer cannot be read .*again"):
        stream_chunks(plan)


def test_one_file_for_a_model_of_two_experts_is_told_what_has_both(checkpoint, monkeypatch):
    folder = checkpoint("test-a14b")
    file = _weights_of(folder / "transformer")
    plan = _plan("test-a14b", folder, "model.boundary=0.8", f"model.transformer={file}")
    forbid_loading(monkeypatch)
    with pytest.raises(ValueError, match=r"^model\.transformer=.* one expert.* has both") as error:
        stream_chunks(plan)
    assert "set model.transformer to it" not in str(error.value)


@pytest.mark.parametrize("part", ["vae", "text_encoder", "image_encoder"])
def test_a_config_cut_short_is_found_before_anything_is_loaded(
    checkpoint, tmp_path, monkeypatch, part
):
    folder = checkpoint("test-i2v")
    plan = _plan("test-i2v", folder, image=_picture(tmp_path))
    path = folder / part / "config.json"
    path.write_text(path.read_text()[:-20])
    forbid_loading(monkeypatch)
    with pytest.raises(ValueError, match=rf"{part}/config\.json is .*download"):
        stream_chunks(plan)


def test_a_vae_with_other_statistics_is_its_own_and_no_error(checkpoint):
    folder = checkpoint("test-t2v")
    config = folder / "vae" / "config.json"
    stated = json.loads(config.read_text())
    config.write_text(json.dumps(stated | {"latents_mean": [0.5] * 16}))
    stream_chunks(_plan("test-t2v", folder))


def test_a_shipped_vae_is_held_against_what_the_arch_says(monkeypatch):
    plan = plan_render("a cat", preset="shapes")
    check_parts(plan)
    other = dataclasses.replace(plan.arch, vae=dataclasses.replace(plan.arch.vae, base_dim=48))
    monkeypatch.setitem(archs.ARCHS, "shapes", other)
    with pytest.raises(ValueError, match=r"base_dim=32 instead of 48; set model\.arch"):
        check_parts(plan_render("a cat", preset="shapes"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.checkpoint=nowhere"], ["model.checkpoint=nowhere is no file", "no weights"]),
        (["model.transformer=gone.pth"], ["model.transformer=gone.pth is no file", "correct it"]),
        (["model.checkpoint=."], ["model.checkpoint=. has no transformer", "complete the"]),
    ],
)
def test_an_absent_checkpoint_is_refused_on_the_command_line(
    tmp_path, monkeypatch, overrides, words
):
    monkeypatch.chdir(tmp_path)
    done = longreel("render", "a cat", "-o", "cat.mp4", *overrides)
    assert (done.code, done.out) == (2, "")
    assert [word for word in words if word not in done.message] == []
    assert files_in(tmp_path) == {}


def test_a_bad_part_on_the_command_line_leaves_no_file(checkpoint, tmp_path, monkeypatch):
    folder = checkpoint("test-t2v")
    _cut(folder / "vae")
    monkeypatch.chdir(tmp_path)
    before = files_in(tmp_path)
    done = longreel(
        *("render", "a cat", "-o", "cat.mp4", "model.arch=test-t2v", f"model.checkpoint={folder}")
    )
    assert (done.code, done.out) == (2, "")
    assert "is truncated" in done.message
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("arch", ["test-t2v", "test-a14b", "test-i2v"])
def test_both_layouts_give_the_same_frames(written, tmp_path, monkeypatch, arch):
    for name, shape in tiny_pipeline.ARCHS.items():
        monkeypatch.setitem(archs.ARCHS, name, shape)
    overrides = ["model.boundary=0.8"] if arch == "test-a14b" else []
    # of the encoder's size: one layout would cut another picture, the other squeeze it
    image = _picture(tmp_path, 28, 28) if arch == "test-i2v" else None
    original = tmp_path / "original"
    tiny_original.write_original(original, written(arch).parts, tiny_pipeline.ARCHS[arch])
    frames = [
        _frames(_plan(arch, folder, *overrides, image=image))
        for folder in (written(arch).folder, original)
    ]
    assert frames[0].std() > 5
    assert np.array_equal(*frames)


def test_a_few_step_causal_file_renders_as_its_diffusers_folder(written, tmp_path, monkeypatch):
    arch = dataclasses.replace(
        tiny_pipeline.ARCHS["test-t2v"], per_latent_timestep=True, causal_latents=2
    )
    monkeypatch.setitem(archs.ARCHS, "test-causal", arch)
    monkeypatch.setitem(archs.ARCHS, "test-t2v", tiny_pipeline.ARCHS["test-t2v"])
    folder = written("test-t2v").folder
    file = tmp_path / "self_forcing_dmd.pth"
    tiny_original.write_self_forcing(file, written("test-t2v").parts["transformer"])

    few_steps = (*SELF_FORCING, "blocks.policy=whole")
    expected = _frames(_plan("test-causal", folder, *few_steps, frames=9))
    assert expected.std() > 5
    of_file = _plan("test-causal", folder, *few_steps, f"model.transformer={file}", frames=9)
    assert np.array_equal(_frames(of_file), expected)
    whole = _frames(_plan("test-t2v", folder, *few_steps, frames=9))
    assert not np.array_equal(whole, expected)  # that its runs are causal is seen


def test_random_weights_need_no_file_and_do_not_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(archs.ARCHS, "test-t2v", tiny_pipeline.ARCHS["test-t2v"])
    first = _frames(_plan("test-t2v", "random"))
    torch.manual_seed(7)
    assert np.array_equal(_frames(_plan("test-t2v", "random")), first)
    assert files_in(tmp_path) == {}
