"""Which tokens and which heads each rank of a stage has.

B batch, F runs of tokens that share a level, D width.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from ..models.protocol import DiTState, Modulation, WindowShape


def cut_tokens(num_tokens: int, num_ranks: int, unit: int) -> list[range]:
    """Consecutive runs of whole units, as even as can be; the last unit may be a part of one."""
    units = -(-num_tokens // unit)
    starts = [min(units * i // num_ranks * unit, num_tokens) for i in range(num_ranks + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]


def cut_window(window: WindowShape, num_ranks: int) -> list[range]:
    """In rows of tokens, so that runs which share a level stay long."""
    rows = len(window.times) * window.height
    return cut_tokens(rows * window.width, num_ranks, window.width)


def overlap(one: range, other: range) -> range:
    """What is in both; empty runs stay where they are, so that lengths and differences work."""
    start = max(one.start, other.start)
    return range(start, max(start, min(one.stop, other.stop)))


def shift(run: range, by: int) -> range:
    return range(run.start + by, run.stop + by)


def own_part(state: DiTState, own: range) -> DiTState:
    """A run of a window's tokens, with what belongs to them."""
    num_tokens = state.tokens_BLD.shape[1]
    return replace(
        state,
        tokens_BLD=state.tokens_BLD[:, own.start : own.stop].contiguous(),
        modulation=_cut_modulation(state.modulation, num_tokens, own),
    )


def _cut_modulation(modulation: Modulation, num_tokens: int, own: range) -> Modulation:
    """Rows of the own tokens, in the longest runs that both cuts allow."""
    if modulation.index_BF is None:
        return modulation
    run = num_tokens // modulation.index_BF.shape[1]
    shared = math.gcd(run, own.start, own.stop)
    index_BF = modulation.index_BF.repeat_interleave(run // shared, dim=1)
    return replace(modulation, index_BF=index_BF[:, own.start // shared : own.stop // shared])


def share_heads(costs: Sequence[float], num_ranks: int) -> list[tuple[int, ...]]:
    """The heads of every rank, each with as even a sum of costs as exchanging heads can make it.

    Ranks differ by one head at most, as what is sent goes by their number. The dearest heads are
    dealt first, each to the rank that has least, then pairs of heads change places while the
    dearest rank gains by it. Heads that all cost the same keep their order.
    """
    num_heads = len(costs)
    assert num_heads >= num_ranks, (num_heads, num_ranks)
    if min(costs) == max(costs):
        return [tuple(run) for run in cut_tokens(num_heads, num_ranks, 1)]
    room = [num_heads // num_ranks + (i < num_heads % num_ranks) for i in range(num_ranks)]
    shares: list[list[int]] = [[] for _ in room]
    for head in sorted(range(num_heads), key=lambda head: (-costs[head], head)):
        open_ranks = [i for i, share in enumerate(shares) if len(share) < room[i]]
        least = min(open_ranks, key=lambda i: (sum(costs[h] for h in shares[i]), i))
        shares[least].append(head)
    while _swap(costs, shares):
        pass
    return [tuple(sorted(share)) for share in shares]


def _swap(costs: Sequence[float], shares: list[list[int]]) -> bool:
    """One exchange of two heads that makes the dearest rank, and none in its place, cheaper."""
    loads = [sum(costs[head] for head in share) for share in shares]
    top = loads.index(max(loads))
    best, found = max(loads) * (1 - 1e-9), None
    for other, share in enumerate(shares):
        for i, mine in enumerate(shares[top]):
            for j, theirs in enumerate(share):
                gain = costs[mine] - costs[theirs]
                dearer = max(loads[top] - gain, loads[other] + gain)
                if other != top and dearer < best:
                    best, found = dearer, (other, i, j)
    if found is None:
        return False
    other, i, j = found
    shares[top][i], shares[other][j] = shares[other][j], shares[top][i]
    return True
