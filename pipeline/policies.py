"""The named queues of the field, each as a setting of the block schedule's fields."""

from collections.abc import Callable
from dataclasses import replace
from math import ceil
from typing import Any

from ..configs.checks import check_read
from ..configs.schema import BlocksConfig
from .schedule import BlockSchedule

# by policy: the fields of BlocksConfig that it reads, of those that not all do
_READS: dict[str, tuple[str, ...]] = {
    "whole": (),
    "dualparal": ("size", "left", "right", "levels"),
    "dualparal-grouped": ("size", "left", "right", "levels", "depth"),
    "dualparal-staggered": ("size", "left", "right", "stagger", "levels", "depth"),
    "diagonal": ("size", "left"),
    "buffer": ("size", "left", "stagger"),
    "forcing": ("size", "left", "stagger", "causal", "window", "prefix_level"),
    "rolling": ("size", "left", "sink"),
    "causal": ("size", "left", "sink", "recache"),
}


def check_numbers(blocks: BlocksConfig, before: BlocksConfig | None = None) -> None:
    """ValueError for one that the policy, which is not auto, would ignore; as `check_read`."""
    check_read("blocks.policy", blocks, _READS, before)


def make_schedule(blocks: BlocksConfig, steps: int, num_latents: int | None) -> BlockSchedule:
    """The schedule that `blocks.policy` names, with the fields that are given in their place."""
    if blocks.policy == "whole" and num_latents is None:
        raise ValueError(
            "blocks.policy=whole has no end to wait for in an open-ended video, so that no frame "
            "would ever leave; choose a policy with blocks, as blocks.policy=dualparal-grouped"
        )
    if blocks.stagger is not None and blocks.stagger > steps:
        raise ValueError(
            f"blocks.stagger={blocks.stagger} keeps a block waiting for steps that its neighbour "
            f"never takes; set it to at most sampling.steps={steps}"
        )
    size, right = _or(blocks.size, 8), blocks.right or 0
    if blocks.policy.startswith("dualparal") and right > size:
        raise ValueError(
            f"blocks.right={right} reaches past the next block, which has {size} latents and alone "
            f"hands its keys and values over; set it to at most {size}, or blocks.size={right}"
        )
    return _POLICIES[blocks.policy](blocks, steps, num_latents)


def with_own_numbers(blocks: BlocksConfig, policy: str) -> BlocksConfig:
    """Another policy with its own numbers; stages are as many as before, if it asks for them."""
    numbers = {name for names in _READS.values() for name in names}
    if "depth" in _READS[policy]:
        numbers.remove("depth")
    own: dict[str, Any] = {name: getattr(BlocksConfig, name) for name in numbers}
    return replace(blocks, policy=policy, **own)


def default_noise(policy: str) -> str:
    """The rule of the policy's authors."""
    return "pool" if policy.startswith("dualparal") else "independent"


def _whole(blocks: BlocksConfig, steps: int, num_latents: int | None) -> BlockSchedule:
    """The plain video: every latent in one window."""
    assert num_latents is not None
    return BlockSchedule(size=num_latents, steps=steps, num_latents=num_latents, max_inflight=1)


def _dualparal(blocks: BlocksConfig, steps: int, num_latents: int | None) -> BlockSchedule:
    """The classic queue: a block a level, one admitted in every sweep, the newest served first."""
    size = _or(blocks.size, 8)
    return BlockSchedule(
        size=size,
        steps=steps,
        num_latents=num_latents,
        stagger=1,
        max_inflight=steps,
        left=_or(blocks.left, 8),
        right=_or(blocks.right, min(8, size)),
        per_latent=blocks.levels == "latent",
    )


def _grouped(blocks: BlocksConfig, steps: int, num_latents: int | None) -> BlockSchedule:
    """The same context, served in bursts of blocks that share their level and fill the ring."""
    size = _or(blocks.size, 8)
    left, right = _or(blocks.left, 8), _or(blocks.right, min(8, size))
    # a task waits for the blocks it reads to come round: with so many, none has to. Without an end
    # nothing is lost by a few more, and every window without a right neighbour has its full width.
    reach = left if num_latents is not None else left + right
    burst = blocks.depth + max(1, ceil(reach / size))
    return BlockSchedule(
        size=size,
        steps=steps,
        num_latents=num_latents,
        burst=burst,
        max_inflight=2 * burst - 1,  # sizes of bursts differ when blocks do not divide
        left=left,
        right=right,
        extend_left=True,
        depth=blocks.depth,
        keep_first=True,
        per_latent=blocks.levels == "latent",
    )


def _staggered(blocks: BlocksConfig, steps: int, num_latents: int | None) -> BlockSchedule:
    """Neighbours `stagger` levels apart: as few blocks in flight as fill the ring."""
    size = _or(blocks.size, 8)
    stagger = _or(blocks.stagger, max(1, steps // (blocks.depth + 1)))
    return BlockSchedule(
        size=size,
        steps=steps,
        num_latents=num_latents,
        stagger=stagger,
        max_inflight=ceil(steps / max(1, stagger)),
        left=_or(blocks.left, 8),
        right=_or(blocks.right, min(8, size)),
        keep_first=True,
        per_latent=blocks.levels == "latent",
    )


def _diagonal(blocks: BlocksConfig, steps: int, num_latents: int | None) -> BlockSchedule:
    """FIFO: a latent a level; windows of `size` latents, of which the noisier half is kept."""
    size = _or(blocks.size, 16)
    return BlockSchedule(
        size=1,
        steps=steps,
        num_latents=num_latents,
        stagger=1,
        max_inflight=steps,
        joint=size - size // 2,
        left=_or(blocks.left, size // 2),
        per_latent=True,
        keep_first=True,
    )


def _buffer(blocks: BlocksConfig, steps: int, num_latents: int | None) -> BlockSchedule:
    """StreamDiT: chunks of `size` latents, `stagger` small steps apart, in one moving window."""
    stagger = _or(blocks.stagger, 1)
    return BlockSchedule(
        size=_or(blocks.size, 2),
        steps=steps,
        num_latents=num_latents,
        stagger=stagger,
        max_inflight=ceil(steps / max(1, stagger)),
        joint=0,
        left=_or(blocks.left, 0),
        per_latent=True,
        keep_first=True,
    )


def _forcing(blocks: BlocksConfig, steps: int, num_latents: int | None) -> BlockSchedule:
    """SkyReels-V2: neighbours `stagger` rows apart, in a window that a noised prefix begins."""
    size, left, causal = _or(blocks.size, 5), _or(blocks.left, 5), blocks.causal or 0
    most = size if num_latents is None else size + size // 2  # the last block may be longer
    if left + most > blocks.window:
        raise ValueError(
            f"blocks.window={blocks.window} is too short for a block of blocks.size={size} latents "
            f"after blocks.left={left} of the past; set it to at least {left + most}"
        )
    for name, count in (("size", size), ("left", left)):
        if causal and count % causal:
            raise ValueError(
                f"blocks.causal={causal} does not divide blocks.{name}={count}, so that a run "
                f"would lie in two blocks and its latents see each other at some steps and not at "
                f"others; set blocks.{name} to a multiple of it, as {causal * -(-count // causal)}"
            )
    return BlockSchedule(
        size=size,
        steps=steps,
        num_latents=num_latents,
        stagger=_or(blocks.stagger, min(5, steps)),
        max_inflight=blocks.window // size,
        window=blocks.window,
        joint=0,
        left=left,
        left_noised=True,
        causal=causal,
        per_latent=True,
        keep_first=True,
    )


def _rolling(blocks: BlocksConfig, steps: int, num_latents: int | None) -> BlockSchedule:
    """Rolling Forcing: a level a block in one window, before it the sink and clean keys."""
    size = _or(blocks.size, 3)
    return BlockSchedule(
        size=size,
        steps=steps,
        num_latents=num_latents,
        stagger=1,
        max_inflight=steps,
        joint=0,
        clean=_or(blocks.left, size),
        sink=_or(blocks.sink, 3),
        per_latent=True,
        keep_first=True,
    )


def _causal(blocks: BlocksConfig, steps: int, num_latents: int | None) -> BlockSchedule:
    """As Self-Forcing and LongLive: block after block, over the sink and clean keys of the last."""
    return BlockSchedule(
        size=_or(blocks.size, 3),
        steps=steps,
        num_latents=num_latents,
        stagger=steps,
        max_inflight=1,
        clean=_or(blocks.left, 9),
        sink=_or(blocks.sink, 3),
        recache=blocks.recache == "prompt",
        keep_first=True,
    )


def _or(given: int | None, default: int) -> int:
    return default if given is None else given


_POLICIES: dict[str, Callable[[BlocksConfig, int, int | None], BlockSchedule]] = {
    "whole": _whole,
    "dualparal": _dualparal,
    "dualparal-grouped": _grouped,
    "dualparal-staggered": _staggered,
    "diagonal": _diagonal,
    "buffer": _buffer,
    "forcing": _forcing,
    "rolling": _rolling,
    "causal": _causal,
}
