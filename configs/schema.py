"""The configuration of a render: one frozen group of fields per owner.

A preset is a YAML file beside this one that names only what differs from these defaults.
"""

import math
import re
from dataclasses import dataclass, field, replace

from .attention import AttentionConfig
from .checks import check_finite, check_name, check_range, check_read, shown
from .parallel import BACKEND_READS, ParallelConfig

SOLVERS = ("euler", "unipc2", "unipc3", "dpm++2m", "dpm++3m", "renoise")
_GUIDED = ("guidance", "guidance_low", "guidance_from", "guidance_to", "negative_prompt")
_GUIDANCE_READS = {"sequential": _GUIDED, "batched": _GUIDED, "none": ()}
GUIDANCE = tuple(_GUIDANCE_READS)
DTYPES = ("float32", "bfloat16", "float16")
POLICIES = (
    "auto",
    "whole",
    "dualparal",
    "dualparal-grouped",
    "dualparal-staggered",
    "diagonal",
    "buffer",
    "forcing",
    "rolling",
    "causal",
)
NOISE = ("independent", "pool")
RECACHES = ("none", "prompt")
LEVELS = ("window", "latent")
_FORMAT_READS = {"mp4": ("crf", "pixel_format", "encoder_preset"), "png": ()}
FORMATS = tuple(_FORMAT_READS)
PIXEL_FORMATS = ("yuv420p", "yuv444p", "yuv420p10le")
_MIN_SHIFT = 1e-6  # below it the first level, 1, becomes 0 / 0 in floating point
ENCODER_PRESETS = (
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
    "placebo",
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which weights, and where they run."""

    arch: str = "tiny"  # a name in models/arch.py; the checkpoint must agree with it
    checkpoint: str = "random"  # folder or hub id that holds every part; random: untrained weights
    transformer: str = ""  # file, folder or hub id[:file] of the DiT when it is not in `checkpoint`
    boundary: float = 0.0  # level under which the low-noise expert takes over; 0: one expert
    lora: str = ""  # adapters of the DiT (of two, the high-noise one), each FILE or FILE@SCALE
    lora_low: str = ""  # of the low-noise expert
    device: str = "auto"  # auto: cuda where there is one, else cpu
    dtype: str = "float32"  # of the DiT and the text encoder
    vae_dtype: str = "float32"
    vae_tile: int = 0  # pixels of a square tile the VAE works on; 0: whole frames
    text_cache: str = "~/.cache/longreel/text"  # prompt embeddings by content; empty: none kept

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise ValueError(
                "model.checkpoint= is empty, so there are no weights to load; "
                "set it to a folder, a hub id, or random"
            )
        if not 0 <= self.boundary < 1:
            raise ValueError(
                f"model.boundary={self.boundary} leaves the high-noise expert no level to run at; "
                "set it to at least 0 (one expert) and below 1"
            )
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", self.device):
            raise ValueError(
                f"model.device={self.device} is no device we can run on; "
                "set it to auto, cpu, cuda, or one GPU such as cuda:0"
            )
        check_name("model.dtype", self.dtype, DTYPES)
        check_name("model.vae_dtype", self.vae_dtype, DTYPES)
        if self.vae_tile and (self.vae_tile < 64 or self.vae_tile % 16):
            raise ValueError(
                f"model.vae_tile={self.vae_tile} cannot be cut into whole latents with room to "
                "blend; set it to 0 (whole frames) or to a multiple of 16 from 64 up"
            )


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """What the video measures."""

    height: int = 64
    width: int = 96
    frames: int = 17  # 0: until somebody stops, for streams
    fps: int = 16
    last_image: str = ""  # file that the last frame should show, for models that take one

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            check_range(f"video.{name}", getattr(self, name), 1, math.inf, "leaves nothing to show")
        check_range("video.frames", self.frames, 0, math.inf, "leaves nothing to show")
        check_range("video.fps", self.fps, 1, 240, "is no frame rate that players keep up with")


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

    def __post_init__(self) -> None:
        check_name("sampling.solver", self.solver, SOLVERS)
        check_range("sampling.steps", self.steps, 1, 1000, "gives no usable row of noise levels")
        check_finite("sampling.shift", self.shift)
        if self.shift < _MIN_SHIFT:
            raise ValueError(
                f"sampling.shift={self.shift} puts noise levels outside 0 to 1; "
                f"set it above 0, from {_MIN_SHIFT} on, where 1 shifts nothing"
            )
        self._check_timesteps()
        self._check_guidance()

    def _check_timesteps(self) -> None:
        levels = shown(self.timesteps)
        if self.solver != "renoise":
            if self.timesteps:
                raise ValueError(
                    f"sampling.timesteps={levels} is not read by sampling.solver={self.solver}; "
                    "set sampling.solver=renoise or sampling.timesteps=[]"
                )
            return
        if not self.timesteps:
            raise ValueError(
                "sampling.timesteps=[] leaves sampling.solver=renoise without levels; "
                "set those the model was distilled at, such as [1000,750,500,250]"
            )
        falling = all(a > b for a, b in zip(self.timesteps, self.timesteps[1:], strict=False))
        if not falling or self.timesteps[0] > 1000 or self.timesteps[-1] < 1:
            raise ValueError(
                f"sampling.timesteps={levels} is no way from noise to a picture; "
                "set numbers from 1000 to 1, each smaller than the one before"
            )
        if self.steps != len(self.timesteps):
            raise ValueError(
                f"sampling.steps={self.steps} contradicts the {len(self.timesteps)} levels in "
                f"sampling.timesteps={levels}; set sampling.steps={len(self.timesteps)}"
            )

    def _check_guidance(self) -> None:
        check_name("sampling.guidance_mode", self.guidance_mode, GUIDANCE)
        for name in ("guidance", "guidance_low"):
            scale = getattr(self, name)
            check_finite(f"sampling.{name}", scale)
            check_range(f"sampling.{name}", scale, 0, math.inf, "steers away from the prompt")
        if not 0 <= self.guidance_to <= self.guidance_from <= 1:
            raise ValueError(
                f"sampling.guidance_from={self.guidance_from} and "
                f"sampling.guidance_to={self.guidance_to} hold no noise level between them; "
                "set 0 <= guidance_to <= guidance_from <= 1"
            )

    def check_asked(self, before: "SamplingConfig") -> None:
        """As that of Config."""
        guides = max(self.guidance, self.guidance_low or 0.0) > 1
        if not guides:  # says what guidance_mode=none does
            before = replace(before, guidance=self.guidance, guidance_low=self.guidance_low)
        check_read("sampling.guidance_mode", self, _GUIDANCE_READS, before)
        for name in ("guidance_from", "guidance_to", "negative_prompt"):
            value = getattr(self, name)
            if not guides and value != getattr(before, name):
                raise ValueError(
                    f"sampling.{name}={value} would be ignored, as sampling.guidance="
                    f"{self.guidance:g} guides no step; leave it out, or set that above 1"
                )


@dataclass(frozen=True, kw_only=True)
class BlocksConfig:
    """How a long video is cut into blocks, and what each can see. None: the policy's own."""

    policy: str = "auto"  # whole while the video fits the model's window, then its kind of queue
    size: int | None = None  # latents of a block (of a window: diagonal)
    left: int | None = None  # latents of context before a block
    right: int | None = None  # latents of context after it
    sink: int | None = None  # first latents of the video that every block sees
    stagger: int | None = None  # steps that a block is behind its left neighbour
    causal: int | None = None  # latents of runs that see no later run of their window (forcing)
    window: int = 25  # latents that one forward may hold (forcing)
    recache: str | None = None  # prompt: cached keys are made again for a new one (causal); or none
    levels: str | None = None  # a window's latents are told: its level (window), or each its own
    depth: int = 8  # stages that the order of service is made for, however many there are
    noise: str | None = None  # independent, or pool: blocks share one set of frames
    prefix_level: float = 0.02  # noise on a clean prefix (forcing)

    def __post_init__(self) -> None:
        check_name("blocks.policy", self.policy, POLICIES)
        check_name("blocks.noise", self.noise, NOISE)
        check_name("blocks.recache", self.recache, RECACHES)
        check_name("blocks.levels", self.levels, LEVELS)
        for name in ("size", "window", "depth"):
            value = getattr(self, name)
            check_range(f"blocks.{name}", value, 1, math.inf, "leaves nothing to work on")
        for name in ("left", "right", "sink", "stagger", "causal"):
            check_range(f"blocks.{name}", getattr(self, name), 0, math.inf, "counts nothing")
        check_range("blocks.prefix_level", self.prefix_level, 0, 0.05, "blurs what is finished")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is saved of a render while it runs, so that it can go on where it stood."""

    every_s: float = 30.0  # seconds between two checkpoints at least; 0: one per block

    def __post_init__(self) -> None:
        check_range("checkpoint.every_s", self.every_s, 0, 1e9, "is no pause")


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """How frames are written."""

    format: str = "mp4"  # png: a folder of numbered pictures
    crf: int = 18
    pixel_format: str = "yuv420p"
    encoder_preset: str = "medium"  # of x264

    def __post_init__(self) -> None:
        check_name("output.format", self.format, FORMATS)
        check_range("output.crf", self.crf, 0, 51, "is no quality that x264 knows")
        check_name("output.pixel_format", self.pixel_format, PIXEL_FORMATS)
        check_name("output.encoder_preset", self.encoder_preset, ENCODER_PRESETS)

    @property
    def suffix(self) -> str:
        """Of its name: a folder of pictures has none."""
        return ".mp4" if self.format == "mp4" else ""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a render is made from, besides prompt, seed and image."""

    preset: str = ""  # the preset it started from; empty: the defaults above
    summary: str = ""  # one line for `longreel presets`
    model: ModelConfig = field(default_factory=ModelConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    blocks: BlocksConfig = field(default_factory=BlocksConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        if self.parallel.link == "nccl" and self.model.device == "cpu":
            raise ValueError(
                "parallel.link=nccl goes from one GPU to another, and model.device=cpu has none; "
                "set parallel.link=auto, or model.device=cuda"
            )
        if self.sampling.guidance_low is not None and not self.model.boundary:
            raise ValueError(
                f"sampling.guidance_low={self.sampling.guidance_low} is never reached, as "
                "model.boundary=0.0 means one expert; set sampling.guidance_low=null, "
                "or model.boundary for a checkpoint with two"
            )
        if self.model.lora_low and not self.model.boundary:
            raise ValueError(
                f"model.lora_low={self.model.lora_low} is for a low-noise expert, and "
                "model.boundary=0.0 means one expert; set model.lora in its place"
            )
        if self.output.format == "mp4" and self.output.pixel_format.startswith("yuv420"):
            for name in ("height", "width"):
                size = getattr(self.video, name)
                if size % 2:
                    raise ValueError(
                        f"video.{name}={size} is odd, and output.pixel_format="
                        f"{self.output.pixel_format} halves it for colour; "
                        f"set it to {size + 1}, or output.pixel_format=yuv444p"
                    )

    def check_asked(self, before: "Config") -> None:
        """ValueError where something is not as in `before`, a preset, and nothing here reads it.

        Not at construction: what a preset has for other choices was asked by nobody, and renders
        that were made when such settings passed are still opened."""
        check_read("output.format", self.output, _FORMAT_READS, before.output)
        check_read("parallel.backend", self.parallel, BACKEND_READS, before.parallel)
        self.sampling.check_asked(before.sampling)
        self.attention.check_asked(before.attention)
