"""The configuration of a render: one frozen group of fields per owner.

A preset is a YAML file beside this one that names only what differs from these defaults.
"""

from dataclasses import dataclass, field

SOLVERS = ("euler", "unipc2", "unipc3", "dpm++2m", "dpm++3m", "renoise")
GUIDANCE = ("sequential", "batched", "none")
DTYPES = ("float32", "bfloat16", "float16")
FORMATS = ("mp4", "png")
PIXEL_FORMATS = ("yuv420p", "yuv444p", "yuv420p10le")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which weights, and where they run."""

    arch: str = "tiny"  # a name in models/arch.py; the checkpoint must agree with it
    checkpoint: str = "random"  # folder or hub id that holds every part; random: untrained weights
    transformer: str = ""  # file, folder or hub id[:file] of the DiT when it is not in `checkpoint`
    boundary: float = 0.0  # level under which the low-noise expert takes over; 0: one expert
    device: str = "auto"  # auto: cuda where there is one, else cpu
    dtype: str = "float32"  # of the DiT and the text encoder
    vae_dtype: str = "float32"
    vae_tile: int = 0  # pixels of a square tile the VAE works on; 0: whole frames
    text_cache: str = "~/.cache/longreel/text"  # prompt embeddings by content; empty: none kept


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """What the video measures."""

    height: int = 64
    width: int = 96
    frames: int = 17
    fps: int = 16
    last_image: str = ""  # file that the last frame should show, for models that take one


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How noise becomes latents."""

    solver: str = "unipc2"
    steps: int = 8
    shift: float = 5.0  # sigma -> shift * sigma / (1 + (shift - 1) * sigma)
    timesteps: tuple[int, ...] = ()  # the levels of a few-step model, of 1000, before the shift
    guidance: float = 5.0
    guidance_low: float | None = None  # of the low-noise expert; none: as `guidance`
    guidance_mode: str = "sequential"  # two forwards, one batch of two, or no guidance at all
    guidance_from: float = 1.0  # guided while guidance_to <= level <= guidance_from
    guidance_to: float = 0.0
    negative_prompt: str = ""


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """How frames are written."""

    format: str = "mp4"  # png: a folder of numbered pictures
    crf: int = 18
    pixel_format: str = "yuv420p"
    encoder_preset: str = "medium"  # of x264


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a render is made from, besides prompt, seed and image."""

    preset: str = ""
    summary: str = ""  # one line for `longreel presets`
    model: ModelConfig = field(default_factory=ModelConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
