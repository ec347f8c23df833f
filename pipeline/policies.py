"""The named queues of the field, each as a setting of the block schedule's fields."""

from collections.abc import Callable
from math import ceil

from ..configs.schema import BlocksConfig
from .schedule import BlockSchedule


def make_schedule(blocks: BlocksConfig, steps: int, num_latents: int | None) -> BlockSchedule:
    """The schedule that `blocks.policy` names, with the fields that are given put in their place."""
    if blocks.policy == "whole" and num_latents is None:
        raise ValueError(
            "blocks.policy=whole has no end to wait for in an open-ended video, so that no frame "
            "would ever leave; choose a policy with blocks, as blocks.policy=dualparal-grouped"
        )
    return _POLICIES[blocks.policy](blocks, steps, num_latents)


def _whole(blocks: BlocksConfig, steps: int, num_latents: int | None) -> BlockSchedule:
    """The plain video: every latent in one window."""
    assert num_latents is not None
    return BlockSchedule(size=num_latents, steps=steps, num_latents=num_latents, max_inflight=1)


def _dualparal(blocks: BlocksConfig, steps: int, num_latents: int | None) -> BlockSchedule:
    """The classic queue: a block a level, one admitted in every sweep, the newest served first."""
    return BlockSchedule(
        size=_or(blocks.size, 8),
        steps=steps,
        num_latents=num_latents,
        stagger=1,
        max_inflight=steps,
        left=_or(blocks.left, 8),
        right=_or(blocks.right, 8),
    )


def _grouped(blocks: BlocksConfig, steps: int, num_latents: int | None) -> BlockSchedule:
    """The same context, served in bursts of blocks that share their level and fill the ring."""
    return BlockSchedule(
        size=_or(blocks.size, 8),
        steps=steps,
        num_latents=num_latents,
        burst=blocks.depth + 1,
        max_inflight=2 * blocks.depth + 1,  # sizes of bursts differ when blocks do not divide
        left=_or(blocks.left, 8),
        right=_or(blocks.right, 8),
        extend_left=True,
        keep_first=True,
    )


def _staggered(blocks: BlocksConfig, steps: int, num_latents: int | None) -> BlockSchedule:
    """Neighbours `stagger` levels apart: as few blocks in flight as fill the ring."""
    stagger = _or(blocks.stagger, max(1, steps // (blocks.depth + 1)))
    return BlockSchedule(
        size=_or(blocks.size, 8),
        steps=steps,
        num_latents=num_latents,
        stagger=stagger,
        max_inflight=ceil(steps / max(1, stagger)),
        left=_or(blocks.left, 8),
        right=_or(blocks.right, 8),
        keep_first=True,
    )


def _diagonal(blocks: BlocksConfig, steps: int, num_latents: int | None) -> BlockSchedule:
    """FIFO: a latent a level; windows of `size` latents, of which the noisier half is kept."""
    half = max(1, _or(blocks.size, 16) // 2)
    return BlockSchedule(
        size=1,
        steps=steps,
        num_latents=num_latents,
        stagger=1,
        max_inflight=steps,
        joint=half,
        left=_or(blocks.left, half),
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
    """SkyReels-V2: neighbours `stagger` rows apart in a window that a noised clean prefix begins."""
    size = _or(blocks.size, 5)
    return BlockSchedule(
        size=size,
        steps=steps,
        num_latents=num_latents,
        stagger=_or(blocks.stagger, 5),
        max_inflight=max(1, blocks.window // size),
        joint=0,
        left=_or(blocks.left, 5),
        left_noised=True,
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
    """Self-Forcing, LongLive: block after block, over the sink and clean keys of the last ones."""
    return BlockSchedule(
        size=_or(blocks.size, 3),
        steps=steps,
        num_latents=num_latents,
        stagger=steps,
        max_inflight=1,
        clean=_or(blocks.left, 9),
        sink=_or(blocks.sink, 3),
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
