"""Whether the configured attention fits a render's windows and devices; the stages' part of it."""

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

import torch

from ..configs.attention import AttentionConfig
from ..configs.schema import Config
from ..kernels.choose import choose_dense, choose_lists
from ..kernels.tiles import Window, has_exact_tiles
from ..models.arch import ModelArch
from ..parallel.sparse import SparseAttention
from ..parallel.tasks import Task
from .schedule import BlockSchedule

if TYPE_CHECKING:
    from .plan import Plan

_LOOKED_AT = 2_000  # tasks: windows repeat long before


def make_sparse(plan: "Plan") -> SparseAttention | None:
    """For one stage; none where every token sees every other, by the kernel that is chosen."""
    if plan.config.attention == AttentionConfig():
        return None
    return SparseAttention(plan.config.attention, plan.arch.dit.num_layers, plan.levels.steps)


def check_attention(
    config: Config,
    arch: ModelArch,
    schedule: BlockSchedule,
    rows: int,
    columns: int,
    causal_latents: int,
) -> None:
    """ValueError where the builder fits neither the grid nor the windows; `rows`: of a latent."""
    attention = config.attention
    if attention == AttentionConfig():
        return
    asked = f"attention.builder={attention.builder}"
    if causal_latents:
        if attention.builder == "dense":
            asked = f"attention.backend={attention.backend}"
        raise ValueError(
            f"{asked} is not for windows whose latents see no later ones, as those of "
            f"model.arch={config.model.arch} with blocks.causal={causal_latents} do; set "
            "attention.builder=dense and attention.backend=auto"
        )
    if attention.builder == "dense":
        return
    if config.parallel.ring > 1 and attention.reads_inputs:
        raise ValueError(
            f"{asked} reads the queries and keys of a whole window, and with "
            f"parallel.ring={config.parallel.ring} no device has those of any head; set "
            "parallel.ring=1, where each has all of some heads, or attention.builder to radial, "
            "tile-window or local"
        )
    tasks = list(islice(schedule.tasks(), _LOOKED_AT))
    if attention.builder == "tile-window":
        _check_tiles(attention, tasks, rows, columns)
    if attention.builder.startswith("stale") and not _windows_stay(tasks, attention.refresh):
        raise ValueError(
            f"{asked} keeps what a window saw for its next step, and with this blocks.policy no "
            "window stays the same from one step to the next, so every step would be dense; set "
            "blocks.policy=dualparal-grouped or attention.builder=pooled"
        )


def check_backend(
    config: Config, arch: ModelArch, device: torch.device, dtype: torch.dtype
) -> None:
    """ValueError where what is asked for is not on this machine; stages elsewhere ask their own."""
    choose_dense(device, dtype, arch.dit.head_dim, config.attention.backend)
    if config.attention.builder != "dense":
        choose_lists(device, config.attention.backend)


def describe_attention(plan: "Plan") -> str:
    """Which lists, and how much of the render they are for."""
    attention, steps = plan.config.attention, plan.levels.steps
    if attention.builder == "dense":
        return "dense"
    of_steps, of_layers = attention.dense_shares
    layers = plan.arch.dit.num_layers
    dense_steps, dense_layers = _first(of_steps, steps), _first(of_layers, layers)
    return (
        f"{attention.builder}; dense in {dense_steps} of {steps} steps and {dense_layers} of "
        f"{layers} layers"
    )


def _first(share: float, num: int) -> int:
    return sum(i < share * num - 1e-9 for i in range(num))


def _check_tiles(
    attention: AttentionConfig, tasks: Iterable[Task], rows: int, columns: int
) -> None:
    for task in tasks:
        window = Window(
            times=task.positions,
            context_times=task.context_positions,
            height=rows,
            width=columns,
            order="tiles",
            by_latent=bool(task.reads or task.stores),
            tile=attention.tile,
        )
        if not has_exact_tiles(window):
            alone = ", each latent by itself, as they are cached" if window.by_latent else ""
            raise ValueError(
                f"attention.builder=tile-window needs boxes of nearly attention.tile="
                f"{attention.tile} tokens that fill a window of {len(window.times)} latents of "
                f"{rows} x {columns} tokens{alone}, and there are none; use attention.builder="
                "local or pooled, another attention.tile, or another size"
            )


def _windows_stay(tasks: list[Task], refresh: int) -> bool:
    """Whether some block is written twice in windows of the same latents."""
    last: dict[tuple[int, ...], tuple[object, ...]] = {}
    for task in tasks:
        blocks = tuple(part.block for part in task.written)
        if blocks and refresh > 1 and last.get(blocks) == task.spans:
            return True
        last[blocks] = task.spans
    return False
