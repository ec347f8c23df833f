"""What a render will do, worked out and checked before anything is loaded."""

from dataclasses import dataclass, replace

import torch
from PIL import Image

from ..configs.checks import counted
from ..configs.schema import Config
from ..models.arch import ModelArch, find_arch
from ..models.text import clean_prompt
from ..models.wan_load import count_bytes
from ..parallel.layout import Layout, make_layout
from .branches import check_branches
from .cost import Seconds
from .cuts import Cuts
from .guidance import plan_guidance
from .kinds import widest_window
from .levels import Levels, make_levels
from .noise import check_seed, revision_seed
from .plan_attention import check_attention, check_backend, describe_attention
from .plan_blocks import find_policy, plan_schedule
from .plan_pictures import check_pictures, open_pictures
from .policies import default_noise
from .prompts import prompts_by_block
from .request import Request
from .schedule import BlockSchedule
from .section import section_prompts
from .shares import check_shares, describe_shares
from .slices import describe_slices, find_measured

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request that can be met, in the model's own measures."""

    request: Request
    arch: ModelArch
    device: torch.device
    latents_shape: tuple[int, int, int, int]  # channels, latents (0: no end), height, width
    schedule: BlockSchedule
    prompts: dict[int, str]  # by the first block that reads them
    num_tokens: int  # of the widest window
    levels: Levels
    pictures: tuple[Image.Image, ...]  # the first frame's, then the last frame's
    weights_bytes: dict[str, int]
    latents_bytes: int

    @property
    def config(self) -> Config:
        return self.request.config

    @property
    def policy(self) -> str:
        """The queue, where the configuration leaves it to the model and the length."""
        num_latents = self.latents_shape[1] or None
        return find_policy(self.config, self.arch, num_latents, self.request.section)

    @property
    def seed(self) -> int:
        """Of the noise."""
        section = self.request.section
        return revision_seed(self.request.seed, section.revision if section else 0)

    @property
    def causal_latents(self) -> int:
        """Runs of so many latents of a window see no later run; 0: all see all."""
        if self.policy == "whole":
            return self.arch.causal_latents
        return self.schedule.causal

    @property
    def backend(self) -> str:
        """What runs the stages: local, or ray."""
        return _find_backend(self.config)

    @property
    def layout(self) -> Layout:
        """Which stages share a device, and how many chains there are."""
        return make_layout(self.config.parallel)

    @property
    def batched(self) -> bool:
        """Whether both branches of guidance go through the model in one batch."""
        return self.config.sampling.guidance_mode == "batched"

    @property
    def cuts(self) -> Cuts:
        """Where segments of the video end."""
        return Cuts(
            self.schedule, fps=self.config.video.fps, frames_per_latent=self.arch.vae.time_stride
        )

    @property
    def shares_noise(self) -> bool:
        return (self.config.blocks.noise or default_noise(self.policy)) == "pool"


def make_plan(request: Request) -> Plan:
    """Check a request against its model and this machine; ValueError says what to change."""
    config, sampling = request.config, request.config.sampling
    check_prompt(request.prompt)
    clean_prompt(sampling.negative_prompt, "sampling.negative_prompt")
    check_seed(request.seed)
    arch = find_arch(config.model.arch)
    shape = _latents_shape(config, arch)
    check_pictures(request, arch)
    _check_experts(config, arch)
    dtype = DTYPES[config.model.dtype]
    levels = make_levels(sampling.solver, sampling.steps, sampling.shift, sampling.timesteps)
    check_branches(config, plan_guidance(sampling, levels, config.model.boundary).guided)
    section = request.section
    schedule = plan_schedule(config, arch, levels.steps, shape[1] or None, section)
    if request.max_inflight is not None:
        most = max(1, schedule.burst, request.max_inflight)
        schedule = replace(schedule, max_inflight=min(schedule.max_inflight, most))
    _, patch_height, patch_width = arch.dit.patch
    rows, columns = shape[2] // patch_height, shape[3] // patch_width
    check_shares(config, arch, schedule, rows)
    policy = find_policy(config, arch, shape[1] or None, section)
    causal = arch.causal_latents if policy == "whole" else schedule.causal
    check_attention(config, arch, schedule, rows, columns, causal)
    device = _driver_device(config)
    if _find_backend(config) == "local":
        check_backend(config, arch, device, dtype)
    if section:
        prompts = section_prompts(section, schedule)
    else:
        prompts = prompts_by_block(
            request.prompt,
            request.prompt_at,
            schedule,
            fps=config.video.fps,
            frames_per_latent=arch.vae.time_stride,
        )
    return Plan(
        request=request,
        arch=arch,
        device=device,
        latents_shape=shape,
        schedule=replace(schedule, new_prompts=tuple(sorted(prompts)[1:])),
        prompts=prompts,
        num_tokens=widest_window(schedule) * rows * columns,
        levels=levels,
        pictures=open_pictures(request),
        weights_bytes=_weights_bytes(config, arch, dtype),
        latents_bytes=4 * shape[0] * shape[1] * shape[2] * shape[3],
    )


def describe(plan: Plan) -> str:
    """The plan in a few lines, for --dry-run."""
    config, (channels, latents, height, width) = plan.config, plan.latents_shape
    video, sampling = config.video, config.sampling
    device, layout = str(plan.device), plan.layout
    size = f", {_size(plan.latents_bytes)}" if latents else ""
    if plan.backend == "ray":
        device = f"{layout.num_devices} x {config.model.device}"
    each = " for each branch of guidance" * (layout.num_branches > 1)
    weights = ", ".join(f"{name} {_size(n)}" for name, n in plan.weights_bytes.items())
    lines = {
        "video": f"{counted(video.frames, 'frame') if video.frames else 'endless frames'} of "
        f"{video.width} x {video.height} at {video.fps} a second",
        "latents": f"{channels} x {latents or 'endless'} x {height} x {width}{size}",
        "blocks": f"{plan.schedule.num_blocks or 'endless'} ({plan.policy}), "
        f"{counted(layout.num_stages, 'stage')}{each} ({plan.backend})",
        **describe_shares(plan),
        "layers": describe_slices(plan, _find_measured(plan)),
        "window": f"{plan.num_tokens} tokens, attention {describe_attention(plan)}",
        "steps": f"{sampling.steps} ({sampling.solver}, shift {sampling.shift:g}), "
        f"guidance {sampling.guidance:g} ({sampling.guidance_mode})",
        "weights": weights,
        "device": f"{device}, {config.model.dtype}",
    }
    return "\n".join(f"{name:8} {text}" for name, text in lines.items())


def _find_measured(plan: Plan) -> Seconds | None:
    """As the stages will, where they are to run on this machine."""
    if plan.backend == "local":
        return find_measured(plan, plan.device)
    if plan.config.parallel.address != "local":
        return None
    has_gpu = plan.config.model.device != "cpu" and torch.cuda.device_count() > 0
    return find_measured(plan, torch.device("cuda" if has_gpu else "cpu"))


def _find_backend(config: Config) -> str:
    """Actors as soon as there are several devices, or a cluster is named, unless it is said."""
    parallel = config.parallel
    if parallel.backend != "auto":
        return parallel.backend
    return "ray" if parallel.num_devices > 1 or parallel.address != "local" else "local"


def _driver_device(config: Config) -> torch.device:
    if _find_backend(config) == "ray":
        return torch.device("cpu")  # actors find their own, on machines that have others than this
    return find_device(config.model.device)


def find_device(name: str) -> torch.device:
    """`auto`, or a device that must be there."""
    count = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    kind, _, index = name.partition(":")  # torch.device("cuda:200") is cuda:-56
    if kind == "cuda" and int(index or 0) >= count:
        found = counted(count, "CUDA device")
        raise ValueError(
            f"model.device={name} is not there (torch finds {found}), so nothing can run on it; "
            "set model.device=auto or model.device=cpu"
        )
    return torch.device(name)


def check_prompt(prompt: str) -> None:
    """ValueError unless it is one."""
    if not clean_prompt(prompt):
        raise ValueError(
            f"prompt={prompt!r} is empty, so there is nothing to render; "
            "describe the video in a sentence"
        )


def _latents_shape(config: Config, arch: ModelArch) -> tuple[int, int, int, int]:
    video, vae = config.video, arch.vae
    extra = (video.frames - 1) % vae.time_stride
    if video.frames and extra:
        below = video.frames - extra
        raise ValueError(
            f"video.frames={video.frames} comes from no whole number of latents (the first is one "
            f"frame, every other {vae.time_stride}); use {below} or {below + vae.time_stride}"
        )
    num_latents = 1 + (video.frames - 1) // vae.time_stride if video.frames else 0
    for axis, name in enumerate(("height", "width"), start=1):
        _check_side(name, getattr(video, name), vae.space_stride * arch.dit.patch[axis], arch)
    return (
        arch.dit.out_channels,
        num_latents,
        video.height // vae.space_stride,
        video.width // vae.space_stride,
    )


def _check_side(name: str, size: int, grid: int, arch: ModelArch) -> None:
    most = arch.dit.max_position * grid
    if size > most:
        raise ValueError(
            f"video.{name}={size} needs {-(-size // grid)} positions and the model has "
            f"{arch.dit.max_position} on an axis; use at most {most}"
        )
    if size % grid:
        below = size - size % grid
        choice = f"{below} or {below + grid}" if below else f"{grid}"
        raise ValueError(
            f"video.{name}={size} is off the model's grid of {grid} pixels, so tokens would "
            f"not cover the picture; use {choice}"
        )


def _check_experts(config: Config, arch: ModelArch) -> None:
    boundary = config.model.boundary
    if bool(boundary) != (arch.num_experts == 2):
        raise ValueError(
            f"model.boundary={boundary:g} does not fit model.arch={config.model.arch}, which has "
            f"{counted(arch.num_experts, 'expert')}; "
            + ("set the level where the second takes over, as 0.875" if not boundary else "set 0")
        )


def _weights_bytes(config: Config, arch: ModelArch, dtype: torch.dtype) -> dict[str, int]:
    copies = config.parallel.num_branches * config.parallel.gpus_per_stage
    transformer = count_bytes(arch.dit, dtype) * arch.num_experts * copies
    times = {1: "", 2: " (twice)"}
    sizes = {
        "transformer" + times.get(copies, f" ({copies} times)"): transformer,
        "text encoder": arch.text_parameters * dtype.itemsize,
        "image encoder": arch.image_parameters * 4,  # always float32
        "VAE": arch.vae_parameters * DTYPES[config.model.vae_dtype].itemsize,
    }
    return {name: size for name, size in sizes.items() if size}


def _size(num_bytes: int) -> str:
    if num_bytes < _GIB:
        return f"{num_bytes / 2**20:.1f} MiB"
    return f"{num_bytes / _GIB:.1f} GiB"
