"""Which layers each stage gets."""

from collections.abc import Sequence
from itertools import pairwise


def split_layers(
    num_layers: int, num_stages: int, *, embed: float = 0.0, head: float = 0.0
) -> list[range]:
    """Consecutive slices whose slowest is as fast as can be.

    `embed` and `head` are what the first and the last stage do besides, measured in layers.
    """
    if num_stages > num_layers:
        idle = num_stages - num_layers
        raise ValueError(
            f"parallel.num_stages={num_stages} leaves {idle} stage{'s' * (idle > 1)} without a "
            f"layer, as the model has {num_layers}; set it to at most {num_layers}"
        )
    counts = [1] * num_stages
    for _ in range(num_layers - num_stages):
        loads = _loads(counts, embed, head)
        counts[loads.index(min(loads))] += 1
    starts = [sum(counts[:i]) for i in range(num_stages + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]


def _loads(counts: Sequence[int], embed: float, head: float) -> list[float]:
    loads = [float(count) for count in counts]
    loads[0] += embed
    loads[-1] += head
    return loads
