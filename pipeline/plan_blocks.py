"""The schedule of a render, checked against its model and the stages it is to run on."""

from dataclasses import replace
from typing import Any

from ..configs.checks import counted
from ..configs.schema import BlocksConfig, Config
from ..models.arch import ModelArch, find_arch
from ..parallel.layout import make_layout
from ..parallel.split import split_layers
from .kinds import widest_window
from .policies import check_numbers, make_schedule
from .schedule import BlockSchedule
from .section import Section


def check_asked(config: Config, before: Config) -> None:
    """ValueError for a number of a queue that is not as in `before` and would be ignored. Asked of
    requests: a render that was begun when it was let pass goes on."""
    arch, frames = find_arch(config.model.arch), config.video.frames
    num_latents = 1 + (frames - 1) // arch.vae.time_stride if frames else None
    blocks = replace(config.blocks, policy=find_policy(config, arch, num_latents))
    check_numbers(blocks, before.blocks)
    stagger = with_defaults_of(arch, blocks, config.sampling.steps).stagger
    apart = blocks.policy == "dualparal-staggered" and stagger is not None
    if apart and blocks.depth != before.blocks.depth:
        raise ValueError(
            f"blocks.depth={blocks.depth} would be ignored, as blocks.stagger={stagger} (the "
            "model's own, if none was set) says how many steps blocks are apart; leave it out"
        )


def plan_schedule(
    config: Config,
    arch: ModelArch,
    steps: int,
    num_latents: int | None,
    section: Section | None = None,
) -> BlockSchedule:
    """ValueError where the policy cannot run on this model or on so many stages."""
    policy = find_policy(config, arch, num_latents, section)
    blocks = replace(config.blocks, policy=policy)
    blocks = with_defaults_of(arch, blocks, steps)
    if section is None:
        schedule = make_schedule(blocks, steps, num_latents)
    else:
        assert num_latents is not None
        schedule = make_schedule(blocks, steps, section.stop)
        after = min(schedule.right, num_latents - section.stop)
        schedule = replace(schedule, first=section.first, after=after)
    _check_model(config, arch, policy, schedule)
    _check_stages(config, arch, policy, schedule)
    _check_positions(config, arch, policy, schedule)
    return schedule


def with_defaults_of(arch: ModelArch, blocks: BlocksConfig, steps: int) -> BlocksConfig:
    """What is left to us, for a model that knows windows of many levels (docs/quality.md)."""
    if not arch.mixed_levels:
        return blocks
    half = -(-steps // 2)
    if blocks.policy == "forcing":
        return _with_defaults(blocks, size=8, left=8, stagger=half)
    if blocks.policy == "dualparal-staggered":
        blocks = _with_defaults(blocks, stagger=half)
    if blocks.policy.startswith("dualparal"):
        blocks = _with_defaults(blocks, levels="latent")
    return blocks


def _with_defaults(blocks: BlocksConfig, **defaults: int | str) -> BlocksConfig:
    unset: dict[str, Any] = {
        name: value for name, value in defaults.items() if getattr(blocks, name) is None
    }
    return replace(blocks, **unset)


def find_policy(
    config: Config, arch: ModelArch, num_latents: int | None, section: Section | None = None
) -> str:
    """The policy that is named; auto: one window while it is no longer than the model's own.
    A section has others beside it, and so is made in blocks. A model that knows windows of many
    levels is best where they hold a finished past (docs/quality.md)."""
    if config.blocks.policy != "auto":
        return config.blocks.policy
    if arch.causal_latents:
        return "causal"
    if num_latents is not None and num_latents <= arch.window and not section:
        return "whole"
    return "forcing" if arch.mixed_levels else "dualparal-grouped"


def _check_model(config: Config, arch: ModelArch, policy: str, schedule: BlockSchedule) -> None:
    name = config.model.arch
    if schedule.per_latent and not arch.per_latent_timestep:
        told = config.blocks.levels == "latent"
        asked = "blocks.levels=latent tells" if told else f"blocks.policy={policy} gives"
        way_out = "blocks.levels=window" if told else "blocks.policy=dualparal-grouped"
        raise ValueError(
            f"{asked} latents of one window different levels, and "
            f"model.arch={name} was trained with one, so it would make noise; use "
            f"{way_out}, or a model with a timestep per latent "
            "(skyreels-v2-df-1.3b, wan2.2-ti2v-5b)"
        )
    if schedule.causal and not (arch.causal_windows or arch.causal_latents == schedule.causal):
        trained = (
            f"in runs of {arch.causal_latents}" if arch.causal_latents else "to see both sides"
        )
        raise ValueError(
            f"blocks.causal={schedule.causal} hides later latents of a window from earlier ones, "
            f"and model.arch={name} was trained {trained}, so it would make noise; leave it out, "
            "or use a model of SkyReels-V2 (skyreels-v2-df-1.3b)"
        )
    if schedule.commits and not arch.causal_latents:
        raise ValueError(
            f"blocks.policy={policy} lets blocks see only what is before them, and "
            f"model.arch={name} was trained to see both sides; use "
            "blocks.policy=dualparal-grouped, or a causal model (shapes-live, self-forcing-1.3b, "
            "longlive-1.3b)"
        )


def _check_stages(config: Config, arch: ModelArch, policy: str, schedule: BlockSchedule) -> None:
    stages = config.parallel.num_stages
    split_layers(arch.dit.num_layers, stages)
    if schedule.joint != 1 or policy in ("whole", "causal"):
        return  # one window at a time by nature: stages then share memory, not time
    inflight, layout = schedule.burst or schedule.max_inflight, make_layout(config.parallel)
    length = layout.chain_length
    if inflight >= length:
        return
    way_out = {
        "dualparal": f"set sampling.steps to at least {length}",
        "dualparal-grouped": f"set blocks.depth to at least {length - 1}",
        "dualparal-staggered": f"set blocks.stagger to at most {max(1, schedule.steps // length)}",
    }[policy]
    asked, what, of = f"parallel.num_stages={stages}", "stage", ""
    if layout.shared:
        asked, what, of = f"parallel.devices={layout.num_devices}", "device", " of a chain"
    raise ValueError(
        f"{asked} would leave {counted(length - inflight, what)}{of} idle at any time, as "
        f"blocks.policy={policy} keeps {counted(inflight, 'block')} in flight; "
        f"{way_out}, or use fewer"
    )


def _check_positions(config: Config, arch: ModelArch, policy: str, schedule: BlockSchedule) -> None:
    most, widest = arch.dit.max_position, _sure_window(schedule)
    if widest <= most:  # else a walk through all of them could take for ever
        widest = widest_window(schedule) + schedule.keep_first
    if widest <= most:
        return
    if policy == "whole":
        frames = 1 + (most - 1) * arch.vae.time_stride
        raise ValueError(
            f"video.frames={config.video.frames} needs {widest} positions in one window and the "
            f"model has {most}; use at most {frames} frames, or blocks.policy=dualparal-grouped"
        )
    raise ValueError(
        f"blocks.size, left and right make windows of {widest} latents and the model has {most} "
        "positions; make them smaller"
    )


def _sure_window(schedule: BlockSchedule) -> int:
    """Latents that its widest window has at least, told without a walk."""
    size, before = schedule.size, max(schedule.left, schedule.clean)
    if schedule.num_latents is None:
        return before + size
    made = schedule.num_latents - schedule.first
    return before + size if before + 2 * size <= made else min(size, made)
