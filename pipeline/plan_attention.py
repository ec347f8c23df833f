"""Whether the configured attention fits a render's windows and devices; the stages' part of it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from ..configs.attention import AttentionConfig
from ..configs.schema import Config
from ..kernels.blocks import is_even
from ..kernels.choose import choose_dense, choose_lists
from ..kernels.tiles import Window, has_exact_tiles, tiles_of
from ..models.arch import ModelArch
from ..parallel.sparse import SparseAttention
from ..parallel.tasks import Task
from .kinds import telling_tasks
from .schedule import BlockSchedule

if TYPE_CHECKING:
    from .plan import Plan

_LOOKED_AT = 2_000  # tasks


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
    tasks = list(telling_tasks(schedule, _LOOKED_AT))
    _check_tiles(config, tasks, rows, columns)
    if attention.keeps_state:
        _check_steps(attention, tasks, schedule.steps, arch.dit.num_layers)


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


def _check_tiles(config: Config, tasks: Iterable[Task], rows: int, columns: int) -> None:
    """ValueError where a window's tiles are not what the builder, or FlexAttention, takes."""
    attention = config.attention
    # bands have tiles of their own: runs of one length
    needs_even = attention.backend == "flex" and attention.builder != "spatiotemporal"
    if needs_even and config.parallel.ring > 1:
        raise ValueError(
            f"attention.backend=flex takes tiles of one size, and parallel.ring="
            f"{config.parallel.ring} cuts a window's where its devices' tokens end; set "
            "parallel.ring=1 or attention.backend=auto"
        )
    for window in _windows(attention, tasks, rows, columns):
        alone = ", each latent by itself, as they are cached" if window.by_latent else ""
        shown = f"{len(window.times)} latents of {rows} x {columns} tokens{alone}"
        if attention.builder == "tile-window" and not has_exact_tiles(window):
            raise ValueError(
                f"attention.builder=tile-window needs boxes of nearly attention.tile="
                f"{attention.tile} tokens that fill a window of {shown}, and there are none; use "
                "attention.builder=local or pooled, another attention.tile, or another size"
            )
        if needs_even and not all(is_even(tiles.starts) for tiles in tiles_of(window)):
            raise ValueError(
                f"attention.backend=flex takes tiles of one size, the last one apart, and "
                f"attention.tile={attention.tile} makes others of a window of {shown}; set "
                "attention.backend=auto, or another attention.tile or size"
            )


def _windows(
    attention: AttentionConfig, tasks: Iterable[Task], rows: int, columns: int
) -> Iterator[Window]:
    """Each once."""
    if attention.builder == "tile-window" or attention.backend == "flex":
        yield from {
            Window(
                times=task.positions,
                context_times=task.context_positions,
                height=rows,
                width=columns,
                order=attention.order,
                by_latent=bool(task.reads or task.stores),
                tile=attention.tile,
            ): None
            for task in tasks
        }


def _check_steps(
    attention: AttentionConfig, tasks: Sequence[Task], steps: int, layers: int
) -> None:
    """ValueError where no step of any layer would use what an earlier one has kept."""
    asked = f"attention.builder={attention.builder} keeps what a window saw for its next steps"
    dense = _first(attention.dense_shares[0], steps)
    if _first(attention.dense_shares[1], layers) == layers:
        raise ValueError(
            f"{asked}, and attention.dense_layers={attention.dense_layers} makes all {layers} "
            "layers dense, which leaves none to use it; set a smaller share, or "
            "attention.builder=dense"
        )
    if not _windows_stay(tasks, 0, steps):
        raise ValueError(
            f"{asked}, and with this blocks.policy and sampling.steps={steps} no window stays the "
            "same from one step to the next, so every step would be dense; set "
            "blocks.policy=dualparal-grouped or attention.builder=pooled"
        )
    if not _windows_stay(tasks, dense, attention.refresh):
        raise ValueError(
            f"{asked}, and of sampling.steps={steps} the first {dense} are dense by "
            f"attention.dense_steps and one in attention.refresh={attention.refresh} of the "
            "others looks at everything, which leaves none to use it; set a larger "
            "sampling.steps or attention.refresh, or attention.builder=dense"
        )


def _windows_stay(tasks: Iterable[Task], dense: int, refresh: int) -> bool:
    """Whether some block is written twice in windows of the same latents, by steps that are not
    dense and lie closer than a refresh."""
    last: dict[tuple[int, ...], tuple[object, int]] = {}
    for task in tasks:
        blocks = tuple(part.block for part in task.written)
        step = min((part.step for part in task.written), default=0)
        if not blocks or step < dense:
            continue
        spans, before = last.get(blocks, (None, 0))
        if spans == task.spans and 0 < step - before < refresh:
            return True
        last[blocks] = task.spans, step
    return False
