"""A whole render beside diffusers' pipelines: same weights, noise and levels, same pictures."""

import numpy as np
import pytest
import tiny_pipeline
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from PIL import Image

from longreel.jobs.render import plan_render, render_latents, stream_chunks
from longreel.models import arch as archs
from longreel.pipeline.noise import window_noise

PROMPT, NEGATIVE = "a red cat walks slowly on the grass", "a dog"
SIZE = {"height": 32, "width": 48}
SHIFT, STEPS, FRAMES, SEED = 3.0, 4, 9, 5


@pytest.fixture
def checkpoint(request, tmp_path, monkeypatch):
    arch = tiny_pipeline.ARCHS[request.param]
    monkeypatch.setitem(archs.ARCHS, request.param, arch)
    return tiny_pipeline.write_checkpoint(tmp_path / "checkpoint", arch)


@pytest.fixture
def pictures(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, *SIZE.values(), 3), dtype=np.uint8)
    paths = [tmp_path / "first.png", tmp_path / "last.png"]
    for path, picture in zip(paths, pixels, strict=True):
        Image.fromarray(picture).save(path)
    return paths


def _plan(arch, checkpoint, tmp_path, *overrides, image=None, size=SIZE):
    return plan_render(
        PROMPT,
        preset="tiny",
        frames=FRAMES,
        seed=SEED,
        image=image,
        overrides=[
            f"model.arch={arch}",
            f"model.checkpoint={checkpoint.folder}",
            f"model.text_cache={tmp_path / 'cache'}",
            f"video.height={size['height']}",
            f"video.width={size['width']}",
            f"sampling.steps={STEPS}",
            f"sampling.shift={SHIFT}",
            f"sampling.negative_prompt={NEGATIVE}",
            *overrides,
        ],
    )


def _opened(path):
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _our_frames(plan):
    chunks = list(stream_chunks(plan))
    assert [chunk.start for chunk in chunks] == [0, 1, 5]
    return np.concatenate([chunk.frames for chunk in chunks])


def _their_frames(pipeline, checkpoint, plan, **inputs):
    channels, latents, height, width = plan.latents_shape
    pipeline.set_progress_bar_config(disable=True)
    video = pipeline(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        latents=window_noise(SEED, 0, latents, (channels, height, width)),
        output_type="np",
        height=plan.config.video.height,
        width=plan.config.video.width,
        **inputs,
    ).frames[0]
    return np.round(video * 255).astype(np.uint8)


def _assert_same_pictures(ours, theirs):
    assert ours.shape == theirs.shape
    assert ours.std() > 5  # pictures, not one grey
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def _parts(checkpoint, *kinds):
    parts = dict(checkpoint.parts) | tiny_pipeline.read_text_parts(checkpoint.folder)
    if "image" in kinds:
        parts |= tiny_pipeline.read_image_parts(checkpoint.folder)
    return parts | {"scheduler": checkpoint.scheduler(SHIFT)}


@pytest.mark.parametrize("checkpoint", ["test-t2v"], indirect=True)
@pytest.mark.parametrize("mode", ["sequential", "batched"])
def test_text_to_video_equals_wan_pipeline(checkpoint, tmp_path, mode):
    plan = _plan("test-t2v", checkpoint, tmp_path, f"sampling.guidance_mode={mode}")
    pipeline = WanPipeline(**_parts(checkpoint))
    theirs = _their_frames(pipeline, checkpoint, plan, guidance_scale=5.0)
    _assert_same_pictures(_our_frames(plan), theirs)


@pytest.mark.parametrize("checkpoint", ["test-t2v"], indirect=True)
def test_without_guidance_it_equals_wan_pipeline_at_scale_one(checkpoint, tmp_path):
    unguided = ("sampling.guidance_mode=none", "sampling.negative_prompt=")
    plan = _plan("test-t2v", checkpoint, tmp_path, *unguided)
    pipeline = WanPipeline(**_parts(checkpoint))
    theirs = _their_frames(pipeline, checkpoint, plan, guidance_scale=1.0)
    _assert_same_pictures(_our_frames(plan), theirs)


@pytest.mark.parametrize("checkpoint", ["test-a14b"], indirect=True)
def test_two_experts_equal_wan_pipeline(checkpoint, tmp_path):
    plan = _plan(
        "test-a14b", checkpoint, tmp_path, "model.boundary=0.8", "sampling.guidance_low=2.0"
    )
    pipeline = WanPipeline(**_parts(checkpoint), boundary_ratio=0.8)
    theirs = _their_frames(pipeline, checkpoint, plan, guidance_scale=5.0, guidance_scale_2=2.0)
    _assert_same_pictures(_our_frames(plan), theirs)


@pytest.mark.parametrize("checkpoint", ["test-i2v"], indirect=True)
def test_image_to_video_equals_wan_pipeline(checkpoint, tmp_path, pictures):
    plan = _plan("test-i2v", checkpoint, tmp_path, image=pictures[0])
    pipeline = WanImageToVideoPipeline(**_parts(checkpoint, "image"))
    theirs = _their_frames(pipeline, checkpoint, plan, image=_opened(pictures[0]))
    _assert_same_pictures(_our_frames(plan), theirs)


@pytest.mark.parametrize("checkpoint", ["test-i2v-a14b"], indirect=True)
@pytest.mark.parametrize("ends_on_one", [False, True])
def test_image_to_video_of_two_experts_equals_wan_pipeline(
    checkpoint, tmp_path, pictures, ends_on_one
):
    """Wan 2.2, whose experts read the pictures' latents and none of CLIP's tokens."""
    last = [f"video.last_image={pictures[1]}"] if ends_on_one else []
    plan = _plan(
        "test-i2v-a14b", checkpoint, tmp_path, "model.boundary=0.8", *last, image=pictures[0]
    )
    pipeline = WanImageToVideoPipeline(**_parts(checkpoint), boundary_ratio=0.8)
    theirs = _their_frames(
        pipeline,
        checkpoint,
        plan,
        image=_opened(pictures[0]),
        last_image=_opened(pictures[1]) if ends_on_one else None,
    )
    _assert_same_pictures(_our_frames(plan), theirs)


@pytest.mark.parametrize("checkpoint", ["test-flf2v"], indirect=True)
def test_first_and_last_image_equal_wan_pipeline(checkpoint, tmp_path, pictures):
    override = f"video.last_image={pictures[1]}"
    plan = _plan("test-flf2v", checkpoint, tmp_path, override, image=pictures[0])
    pipeline = WanImageToVideoPipeline(**_parts(checkpoint, "image"))
    theirs = _their_frames(
        pipeline,
        checkpoint,
        plan,
        image=_opened(pictures[0]),
        last_image=_opened(pictures[1]),
    )
    _assert_same_pictures(_our_frames(plan), theirs)


@pytest.mark.parametrize("checkpoint", ["test-ti2v"], indirect=True)
@pytest.mark.parametrize("with_image", [False, True])
def test_wan_2_2_5b_equals_wan_pipeline(checkpoint, tmp_path, pictures, with_image):
    size = {"height": 64, "width": 96}
    image = pictures[0] if with_image else None
    plan = _plan("test-ti2v", checkpoint, tmp_path, image=image, size=size)
    kind, inputs = WanPipeline, {}
    if with_image:
        kind, inputs = WanImageToVideoPipeline, {"image": _opened(image)}
    pipeline = kind(**_parts(checkpoint), expand_timesteps=True)
    theirs = _their_frames(pipeline, checkpoint, plan, **inputs)
    _assert_same_pictures(_our_frames(plan), theirs)


@pytest.mark.parametrize("checkpoint", ["test-t2v"], indirect=True)
def test_latents_are_those_the_frames_are_decoded_from(checkpoint, tmp_path):
    plan = _plan("test-t2v", checkpoint, tmp_path)
    latents_BCTHW = render_latents(plan)
    assert latents_BCTHW.shape == (1, 16, 3, 4, 6)
    assert latents_BCTHW.dtype == torch.float32
    assert torch.equal(latents_BCTHW, render_latents(plan))
    vae = checkpoint.parts["vae"]
    std, mean = (
        torch.tensor(values).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_std, vae.config.latents_mean)
    )
    video = vae.decode(latents_BCTHW * std + mean).sample[0]
    theirs = ((video.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
    _assert_same_pictures(_our_frames(plan), theirs)
