"""A plan says what a render will do, and refuses one that cannot be, before anything is loaded."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from longreel.configs.load import load_config, preset_names
from longreel.jobs.train.text_side import TextSide
from longreel.jobs.world.captions import vocabulary
from longreel.models.arch import ARCHS
from longreel.models.text_encoder import load_encoder
from longreel.models.vae_build import build_vae
from longreel.models.wan import WanDiT
from longreel.pipeline.plan import describe, find_device, make_plan
from longreel.pipeline.request import Request


def plan(*overrides, prompt="a cat", seed=0, image=None, preset="tiny"):
    config = load_config(preset, overrides)
    return make_plan(Request(prompt=prompt, config=config, seed=seed, image=image))


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "first.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["video.frames=18"], ["video.frames=18", "no whole number of latents", "use 17 or 21"]),
        (["video.frames=3"], ["video.frames=3", "use 1 or 5"]),
        (
            ["video.frames=4097", "blocks.policy=whole"],
            ["video.frames=4097", "1025 positions", "1024", "at most 4093"],
        ),
        (["video.height=70"], ["video.height=70", "grid of 16 pixels", "use 64 or 80"]),
        (["video.width=8"], ["video.width=8", "would not cover the picture", "use 16"]),
        (["video.height=16400"], ["video.height=16400", "1025 positions", "at most 16384"]),
        (["video.width=1000000002"], ["video.width=1000000002", "at most 16384"]),
        (["model.arch=wan2.1-t2v-14"], ["model.arch=wan2.1-t2v-14", "mean wan2.1-t2v-14b?"]),
        (
            ["model.arch=sora"],
            ["model.arch=sora is no model", "one of tiny, shapes, shapes-live, wan2.1-t2v-1.3b"],
        ),
        (["model.device=cuda:99"], ["model.device=cuda:99 is not there", "model.device=cpu"]),
        # torch.device wraps these round to -56 and 0
        (["model.device=cuda:200"], ["model.device=cuda:200 is not there", "model.device=auto"]),
        (["model.device=cuda:256"], ["model.device=cuda:256 is not there", "model.device=auto"]),
        (["sampling.shift=1e9"], ["sampling.shift=1000000000.0", "same level", "1 to 20"]),
        (["model.boundary=0.5"], ["model.boundary=0.5", "1 expert;", "set 0"]),
        (
            ["model.arch=wan2.2-t2v-a14b"],
            ["model.boundary=0 does not fit model.arch=wan2.2-t2v-a14b", "2 experts", "0.875"],
        ),
        (
            ["parallel.gpus_per_stage=16", "parallel.ring=2"],
            ["heads among 8 devices", "model.arch=tiny has 2", "set parallel.ring=8, or use fewer"],
        ),
        (
            ["parallel.gpus_per_stage=32", "parallel.ring=32"],
            ["has 20 (5 latents of 4)", "some devices would have none", "at most 20"],
        ),
        (["model.arch=wan2.1-i2v-14b"], ["image is missing", "starts from one", "--image FILE"]),
        (
            ["video.last_image=last.png"],
            ["video.last_image=last.png would be ignored", "model.arch=tiny", "leave it out"],
        ),
        (
            ["model.arch=wan2.2-ti2v-5b", "video.last_image=last.png"],
            ["video.last_image=last.png is not for", "first image only", "flf2v-14b or wan2.2-i2v"],
        ),
    ],
)
def test_what_cannot_be_rendered_names_field_value_consequence_and_way_out(overrides, words):
    with pytest.raises(ValueError, match=r"^[\w.]+[= ]") as error:
        plan(*overrides)
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize("prompt", ["", "  \n", "&nbsp;", "&amp;nbsp; "])
def test_a_prompt_of_which_nothing_is_left_is_refused(prompt):
    with pytest.raises(ValueError, match=r"^prompt='.*is empty, so there is nothing to.*describe"):
        plan(prompt=prompt)


@pytest.mark.parametrize("field", ["prompt", "sampling.negative_prompt"])
def test_bytes_that_are_no_text_are_refused_in_either_prompt(field):
    text = b"caf\xe9".decode(errors="surrogateescape")  # as the command line hands them over
    with pytest.raises(ValueError, match=rf"^{field}='caf.*not UTF-8.*set the terminal"):
        plan(prompt=text) if field == "prompt" else plan(f"{field}={text}")


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_keys_no_noise_is_refused(seed):
    with pytest.raises(ValueError, match=rf"^seed={seed} .*takes 0 to {2**63 - 1}; choose"):
        plan(seed=seed)


@pytest.mark.parametrize("seed", [1.5, 2.0, "3", None])
def test_a_seed_that_is_no_whole_number_is_refused(seed):
    with pytest.raises(ValueError, match=rf"^seed={seed!r} is no whole number"):
        plan(seed=seed)


def test_an_image_is_refused_by_a_model_that_reads_none(picture):
    with pytest.raises(ValueError, match=r"^image=.*first\.png would be ignored.*i.*leave it out"):
        plan(image=picture)


def test_self_forcing_sees_all_that_its_weights_were_trained_to_see():
    """21 latents: everything before a block in a video of the published length, not more in a
    longer one."""
    for task in plan(preset="self-forcing-1.3b").schedule.tasks():
        assert task.context_positions == tuple(range(task.positions[0]))
    for task in plan("video.frames=161", preset="self-forcing-1.3b").schedule.tasks():
        assert max(task.positions) < 21


def test_longlive_sees_twelve_latents_and_its_sink_is_one_of_them():
    schedule = plan(preset="longlive-1.3b").schedule
    seen = [{*task.positions, *task.context_positions} for task in schedule.tasks()]
    assert max(map(len, seen)) == 12
    assert all({0, 1, 2} <= latents for latents in seen)


def test_a_model_of_first_images_takes_no_last_one(picture):
    with pytest.raises(ValueError, match=r"^video\.last_image=.* is not for .*flf2v-14b"):
        plan("model.arch=wan2.1-i2v-14b", f"video.last_image={picture}", image=picture)


def test_one_frame_has_no_room_for_a_first_and_a_last_image(picture):
    overrides = ["model.arch=wan2.1-flf2v-14b", f"video.last_image={picture}", "video.frames=1"]
    with pytest.raises(ValueError, match=r"^video\.frames=1 leaves no frame.*use at least 5"):
        plan(*overrides, image=picture)


def test_a_model_that_ends_on_a_picture_asks_for_it(picture):
    with pytest.raises(ValueError, match=r"^video\.last_image is missing.*ends on one.*=FILE"):
        plan("model.arch=wan2.1-flf2v-14b", image=picture)


@pytest.mark.parametrize("field", ["image", "video.last_image"])
def test_a_picture_that_cannot_be_read_is_found_by_the_plan(picture, field):
    broken = picture.with_name("broken.png")
    broken.write_bytes(picture.read_bytes()[:-300])  # its header is whole
    image, last = (broken, picture) if field == "image" else (picture, broken)
    with pytest.raises(ValueError, match=rf"^{field}=.*broken\.png cannot be read.*save it again"):
        plan("model.arch=wan2.1-flf2v-14b", f"video.last_image={last}", image=image)


def test_a_picture_of_another_ratio_is_no_error(picture):
    (opened,) = plan("model.arch=wan2.1-i2v-14b", image=picture).pictures
    assert opened.size == (60, 40)


def test_a_name_that_only_looks_like_a_home_folder_is_a_name(tmp_path, monkeypatch, picture):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~draft.png").write_bytes(picture.read_bytes())
    made = plan("model.arch=wan2.1-flf2v-14b", "video.last_image=~draft.png", image=picture)
    assert len(made.pictures) == 2


@pytest.mark.parametrize(
    ("preset", "latents", "tokens"),
    # 832 x 480 are 60 x 104 latents, two by two a token, in 21 latents of 81 frames
    [
        ("wan2.1-t2v-1.3b", (16, 21, 60, 104), 32_760),
        ("wan2.1-t2v-14b", (16, 21, 90, 160), 75_600),
        ("wan2.2-ti2v-5b", (48, 31, 44, 80), 27_280),
        ("skyreels-v2-df-14b", (16, 25, 68, 120), 51_000),
        ("tiny", (16, 5, 8, 12), 120),
    ],
)
def test_latents_and_tokens_are_those_of_the_published_sizes(preset, latents, tokens):
    made = plan(preset=preset)
    assert (made.latents_shape, made.num_tokens) == (latents, tokens)
    assert made.latents_bytes == 4 * np.prod(latents)


@cache
def _parameters(build, *config):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(*config).parameters())


def _text_parameters(arch):
    if arch is ARCHS["tiny"]:
        return _parameters(lambda: load_encoder(None, 32, device="meta", dtype=torch.float32))
    if arch.text_len == ARCHS["shapes"].text_len:
        return _parameters(lambda: TextSide(vocabulary(), text_len=48, text_dim=96))
    return _parameters(_published_text_encoder)


def _published_text_encoder():
    config = UMT5Config(
        vocab_size=256_384, d_model=4096, d_kv=64, d_ff=10_240, num_layers=24, num_heads=64
    )
    return UMT5EncoderModel(config)


def _published_image_encoder():
    config = CLIPVisionConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
    )
    return CLIPVisionModel(config)


@pytest.mark.parametrize("name", ARCHS)
def test_the_weights_of_every_part_are_counted_right(name):
    arch = ARCHS[name]
    assert arch.vae_parameters == _parameters(build_vae, arch.vae)
    assert arch.text_parameters == _text_parameters(arch)
    has_image = arch.dit.image_dim is not None
    assert arch.image_parameters == (_parameters(_published_image_encoder) if has_image else 0)


@pytest.mark.parametrize("preset", preset_names())
def test_bytes_are_weights_times_the_size_of_their_type(preset, picture):
    arch = ARCHS[load_config(preset).model.arch]
    last = [f"video.last_image={picture}"] if arch.dit.image_positions else []
    made = plan(*last, preset=preset, image=picture if arch.image == "channels" else None)
    wide = preset in ("tiny", "shapes", "shapes-live")  # in float32
    # norms, modulation and the embedding of levels stay float32: under a hundredth of the weights
    transformer = arch.num_experts * _parameters(WanDiT, arch.dit) * (2 + 2 * wide)
    assert transformer <= made.weights_bytes["transformer"] <= 1.03 * transformer
    assert made.weights_bytes["text encoder"] == arch.text_parameters * (2 + 2 * wide)
    assert made.weights_bytes["VAE"] == arch.vae_parameters * 4


def test_the_image_encoder_counts_in_float32_which_it_is_run_in(picture):
    made = plan(preset="wan2.1-i2v-14b", image=picture)
    assert made.weights_bytes["image encoder"] == 630_766_080 * 4


def test_the_description_tells_size_steps_weights_and_device():
    described = describe(plan(preset="wan2.1-t2v-14b"))
    lines = dict(line.split(maxsplit=1) for line in described.splitlines())
    assert lines["video"] == "81 frames of 1280 x 720 at 16 a second"
    assert lines["latents"] == "16 x 21 x 90 x 160, 18.5 MiB"
    assert lines["window"] == "75600 tokens, attention dense"
    assert lines["steps"].startswith("50 (unipc2, shift 5), guidance 5")
    # 14.29e9, 5.68e9 and 0.127e9 weights
    assert lines["weights"] == "transformer 27.0 GiB, text encoder 10.6 GiB, VAE 484.1 MiB"
    assert lines["device"].endswith("bfloat16")


def test_the_description_of_a_video_without_an_end_counts_nothing_of_all_of_it():
    described = describe(plan("video.frames=0", preset="shapes"))
    assert "\nlatents  12 x endless x 12 x 12\n" in described


def test_the_description_tells_what_the_devices_of_a_stage_share():
    settings = ["parallel.num_stages=2", "parallel.gpus_per_stage=4", "parallel.ring=2"]

    def lines(*more):
        described = describe(plan(*settings, *more, preset="wan2.1-t2v-14b"))
        return dict(line.split(maxsplit=1) for line in described.splitlines())

    assert lines()["shares"] == "4 devices a stage: heads among 2, keys round 2; frames on one"
    assert lines("model.vae_tile=256")["shares"].endswith("; tiles on 4 devices")
    assert lines()["device"].startswith("8 x auto")
    assert lines()["weights"].startswith("transformer (4 times) 107.8 GiB")
    assert "shares" not in lines("parallel.gpus_per_stage=1", "parallel.ring=1")


def test_the_cpu_is_always_there_and_auto_takes_what_is():
    assert find_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.device_count() else "cpu"
    assert find_device("auto") == torch.device(expected)


def test_a_plan_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan().num_tokens = 1
