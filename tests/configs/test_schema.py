"""A value that cannot work is refused at construction: field, value, consequence, way out."""

import math
from fractions import Fraction

import av
import pytest
import torch

from longreel.configs.attention import AttentionConfig
from longreel.configs.schema import (
    DTYPES,
    ENCODER_PRESETS,
    PIXEL_FORMATS,
    BlocksConfig,
    CheckpointConfig,
    Config,
    ModelConfig,
    OutputConfig,
    ParallelConfig,
    SamplingConfig,
    VideoConfig,
)

RENOISE = {"solver": "renoise", "steps": 2}


@pytest.mark.parametrize(
    ("build", "fields", "expected"),
    [
        (ModelConfig, {"checkpoint": ""}, ("model.checkpoint=", "hub id")),
        (ModelConfig, {"boundary": 1.0}, ("model.boundary=1.0", "below 1")),
        (ModelConfig, {"boundary": -0.1}, ("model.boundary=-0.1", "below 1")),
        (ModelConfig, {"boundary": math.nan}, ("model.boundary=nan", "below 1")),
        (ModelConfig, {"device": "gpu"}, ("model.device=gpu", "cuda:0")),
        (ModelConfig, {"device": "cuda:"}, ("model.device=cuda:", "cuda:0")),
        (ModelConfig, {"device": "cuda:-1"}, ("model.device=cuda:-1", "cuda:0")),
        (ModelConfig, {"dtype": "bf16"}, ("model.dtype=bf16", "did you mean bfloat16?")),
        (ModelConfig, {"dtype": "fp16"}, ("model.dtype=fp16", "did you mean float16?")),
        (ModelConfig, {"vae_dtype": "fp32"}, ("model.vae_dtype=fp32", "did you mean float32?")),
        (ModelConfig, {"vae_tile": 48}, ("model.vae_tile=48", "multiple of 16")),
        (ModelConfig, {"vae_tile": 72}, ("model.vae_tile=72", "multiple of 16")),
        (ModelConfig, {"vae_tile": -64}, ("model.vae_tile=-64", "multiple of 16")),
        (VideoConfig, {"height": 0}, ("video.height=0", "1 or more")),
        (VideoConfig, {"width": -8}, ("video.width=-8", "1 or more")),
        (VideoConfig, {"frames": -1}, ("video.frames=-1", "0 or more")),
        (VideoConfig, {"fps": 0}, ("video.fps=0", "from 1 to 240")),
        (VideoConfig, {"fps": 241}, ("video.fps=241", "from 1 to 240")),
        (SamplingConfig, {"solver": "unipc"}, ("sampling.solver=unipc", "did you mean unipc2?")),
        (SamplingConfig, {"solver": "heun"}, ("sampling.solver=heun", "one of euler, unipc2")),
        (AttentionConfig, {"mass": 0.0}, ("attention.mass=0.0", "keeps a tile")),
        (SamplingConfig, {"steps": 0}, ("sampling.steps=0", "from 1 to 1000")),
        (SamplingConfig, {"steps": 1001}, ("sampling.steps=1001", "from 1 to 1000")),
        (SamplingConfig, {"shift": 0.0}, ("sampling.shift=0.0", "above 0")),
        (SamplingConfig, {"shift": math.inf}, ("sampling.shift=inf", "finite")),
        (SamplingConfig, {"guidance": -1.0}, ("sampling.guidance=-1.0", "0 or more")),
        (SamplingConfig, {"guidance": math.nan}, ("sampling.guidance=nan", "finite")),
        (SamplingConfig, {"guidance_low": -1.0}, ("sampling.guidance_low=-1.0", "0 or more")),
        (SamplingConfig, {"guidance_low": math.inf}, ("sampling.guidance_low=inf", "finite")),
        (SamplingConfig, {"guidance_mode": "batch"}, ("guidance_mode=batch", "mean batched?")),
        (SamplingConfig, {"guidance_from": 1.5}, ("guidance_from=1.5", "<= 1")),
        (SamplingConfig, {"guidance_to": -0.5}, ("guidance_to=-0.5", "0 <=")),
        (
            SamplingConfig,
            {"guidance_from": 0.2, "guidance_to": 0.6},
            ("guidance_from=0.2", "guidance_to=0.6", "guidance_to <= guidance_from"),
        ),
        (SamplingConfig, {"timesteps": (1000,)}, ("timesteps=[1000]", "solver=renoise")),
        (SamplingConfig, {"solver": "renoise"}, ("timesteps=[]", "[1000,750,500,250]")),
        (SamplingConfig, RENOISE | {"timesteps": (500, 500)}, ("[500,500]", "smaller")),
        (SamplingConfig, RENOISE | {"timesteps": (250, 500)}, ("[250,500]", "smaller")),
        (SamplingConfig, RENOISE | {"timesteps": (1001, 1)}, ("[1001,1]", "1000 to 1")),
        (SamplingConfig, RENOISE | {"timesteps": (1000, 0)}, ("[1000,0]", "1000 to 1")),
        (SamplingConfig, RENOISE | {"timesteps": (9,)}, ("sampling.steps=2", "steps=1")),
        (ParallelConfig, {"link": "ncc"}, ("parallel.link=ncc", "mean nccl?")),
        (
            ParallelConfig,
            {"link": "nccl", "backend": "local"},
            ("parallel.link=nccl", "would be ignored", "parallel.backend=ray"),
        ),
        (ParallelConfig, {"gpus_per_stage": 10**12}, ("gpus_per_stage=10", "from 1 to 1024")),
        (
            ParallelConfig,
            {"place_timeout_s": math.nan},
            ("place_timeout_s=nan", "is no time"),
        ),
        (
            ParallelConfig,
            {"transfer_timeout_s": math.inf},
            ("transfer_timeout_s=inf", "is no time"),
        ),
        (ParallelConfig, {"transfer_timeout_s": 1e308}, ("transfer_timeout_s=1e", "to 1e+06")),
        (ParallelConfig, {"address": " "}, ("parallel.address is blank", "name one")),
        (
            ParallelConfig,
            {"address": "head:6379", "backend": "local"},
            ("parallel.address=head:6379", "would be ignored", "or parallel.address=local"),
        ),
        (CheckpointConfig, {"every_s": math.inf}, ("checkpoint.every_s=inf", "is no pause")),
        (
            Config,
            {"model": ModelConfig(device="cpu"), "parallel": ParallelConfig(link="nccl")},
            ("parallel.link=nccl", "model.device=cpu has none", "parallel.link=auto"),
        ),
        (BlocksConfig, {"recache": "promt"}, ("blocks.recache=promt", "mean prompt?")),
        (BlocksConfig, {"causal": -1}, ("blocks.causal=-1", "0 or more")),
        (OutputConfig, {"format": "mp3"}, ("output.format=mp3", "did you mean mp4?")),
        (OutputConfig, {"crf": 52}, ("output.crf=52", "from 0 to 51")),
        (OutputConfig, {"crf": -1}, ("output.crf=-1", "from 0 to 51")),
        (OutputConfig, {"pixel_format": "yuv420"}, ("pixel_format=yuv420", "mean yuv420p?")),
        (OutputConfig, {"encoder_preset": "Slow"}, ("encoder_preset=Slow", "mean slow?")),
    ],
)
def test_a_bad_value_is_named_with_the_way_out(build, fields, expected):
    with pytest.raises(ValueError, match=expected[0].replace("[", r"\[")) as caught:
        build(**fields)
    for part in expected[1:]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("build", "fields"),
    [
        (ModelConfig, {"boundary": 0.999, "device": "cuda:15", "vae_tile": 64}),
        (VideoConfig, {"height": 1, "width": 1, "frames": 1, "fps": 240}),
        (SamplingConfig, {"steps": 1000, "guidance": 0.0, "shift": 1e-6}),
        (SamplingConfig, {"guidance_from": 0.5, "guidance_to": 0.5}),
        (SamplingConfig, {"solver": "renoise", "steps": 2, "timesteps": (1000, 1)}),
        (OutputConfig, {"crf": 51, "format": "png"}),
    ],
)
def test_the_ends_of_every_range_are_allowed(build, fields):
    config = build(**fields)
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv420p10le"])
@pytest.mark.parametrize("side", ["height", "width"])
def test_an_odd_size_is_refused_where_colour_is_halved(pixel_format, side):
    output = OutputConfig(pixel_format=pixel_format)
    with pytest.raises(ValueError, match=f"video.{side}=65 is odd.*set it to 66.*yuv444p"):
        Config(video=VideoConfig(**{side: 65}), output=output)


@pytest.mark.parametrize("output", [{"pixel_format": "yuv444p"}, {"format": "png"}])
def test_an_odd_size_is_fine_where_colour_is_whole(output):
    assert Config(video=VideoConfig(height=65), output=OutputConfig(**output)).video.height == 65


def test_a_scale_for_an_expert_that_is_not_there_is_refused():
    sampling = SamplingConfig(guidance_low=3.0)
    with pytest.raises(ValueError, match=r"guidance_low=3\.0 is never reached.*guidance_low=null"):
        Config(sampling=sampling)
    assert Config(sampling=sampling, model=ModelConfig(boundary=0.9)).sampling.guidance_low == 3.0


def test_dtypes_are_torch_names():
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in DTYPES)


def test_encoder_presets_and_pixel_formats_are_those_of_x264():
    codec = av.Codec("libx264", "w")
    assert set(PIXEL_FORMATS) <= {pixel_format.name for pixel_format in codec.video_formats}
    for preset in ENCODER_PRESETS:
        context = av.CodecContext.create(codec, "w")
        context.width, context.height, context.pix_fmt = 16, 16, "yuv420p"
        context.framerate, context.time_base = 16, Fraction(1, 16)
        context.options = {"preset": preset}
        context.open()  # x264 refuses a preset it does not know
