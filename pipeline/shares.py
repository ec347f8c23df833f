"""Whether the devices of a stage can share every window of a render, and the VAE's tiles."""

from typing import TYPE_CHECKING

from ..configs.schema import Config
from ..models.arch import ModelArch
from ..models.vae_tiles import tiling
from ..parallel.shards import share_heads
from .kinds import smallest_window
from .schedule import BlockSchedule

if TYPE_CHECKING:
    from .plan import Plan


def tile_shares(plan: "Plan") -> list[tuple[int, ...]]:
    """The VAE's tiles by the worker that decodes them, even in cells; one worker: all of them."""
    vae, (height, width) = plan.arch.vae, plan.latents_shape[2:]
    stride = vae.space_stride
    cut = tiling(
        plan.config.model.vae_tile, cell=stride, out_cell=vae.patch or 1, space_stride=stride
    )
    cells = [
        float((rows.stop - rows.start) * (columns.stop - columns.start))
        for row in cut.spans(height, width)
        for rows, columns in row
    ]
    return share_heads(cells, min(len(cells), plan.config.parallel.gpus_per_stage))


def describe_shares(plan: "Plan") -> dict[str, str]:
    """What the devices of a stage have, as a line for --dry-run; none where a stage is one."""
    mesh, tiles = plan.layout.mesh, len(tile_shares(plan))
    if plan.layout.num_shares == 1:
        return {}
    ways = [f"heads among {mesh.ulysses}"] * (mesh.ulysses > 1)
    ways += [f"keys round {mesh.ring}"] * (mesh.ring > 1)
    decoding = f"tiles on {tiles} devices" if tiles > 1 else "frames on one"
    return {"shares": f"{plan.layout.num_shares} devices a stage: {', '.join(ways)}; {decoding}"}


def check_shares(config: Config, arch: ModelArch, schedule: BlockSchedule, rows: int) -> None:
    """ValueError where a device would be left without heads or tokens; `rows`: of a latent."""
    each, ring = config.parallel.gpus_per_stage, config.parallel.ring
    if each == 1:
        return
    asked, heads, line = f"parallel.gpus_per_stage={each}", arch.dit.num_heads, each // ring
    if line > heads:
        rings = [n for n in range(ring + 1, each + 1) if each % n == 0 and each // n <= heads]
        raise ValueError(
            f"{asked} with parallel.ring={ring} exchanges heads among {line} devices, and "
            f"model.arch={config.model.arch} has {heads}, so some would have none; set "
            f"parallel.ring={rings[0]}, or use fewer"
        )
    smallest = smallest_window(schedule)
    if each > smallest * rows:
        raise ValueError(
            f"{asked} shares the rows of a window's tokens, and its smallest window has "
            f"{smallest * rows} ({smallest} latents of {rows}), so some devices would have none; "
            f"set it to at most {smallest * rows}"
        )
