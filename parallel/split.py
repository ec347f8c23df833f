"""Which layers each stage gets, and other rows cut into even runs."""

from collections.abc import Sequence
from itertools import pairwise

from ..configs.checks import counted


def split_layers(
    num_layers: int, num_stages: int, *, embed: float = 0.0, head: float = 0.0
) -> list[range]:
    """Consecutive slices whose slowest is as fast as can be.

    `embed` and `head` are what the first and the last stage do besides, measured in layers.
    """
    if num_stages > num_layers:
        idle = counted(num_stages - num_layers, "stage")
        raise ValueError(
            f"parallel.num_stages={num_stages} leaves {idle} without a "
            f"layer, as the model has {num_layers}; set it to at most {num_layers}"
        )
    return split_evenly(num_layers, num_stages, first=embed, last=head)


def split_evenly(
    num_items: int, num_runs: int, *, first: float = 0.0, last: float = 0.0
) -> list[range]:
    """Consecutive runs, none of them empty; `first` and `last`: what the ends carry besides."""
    assert 1 <= num_runs <= num_items, (num_items, num_runs)
    counts = [1] * num_runs
    for _ in range(num_items - num_runs):
        loads = _loads(counts, first, last)
        counts[loads.index(min(loads))] += 1
    starts = [sum(counts[:i]) for i in range(num_runs + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]


def _loads(counts: Sequence[int], first: float, last: float) -> list[float]:
    loads = [float(count) for count in counts]
    loads[0] += first
    loads[-1] += last
    return loads
