"""Tokens and heads are shared out whole, in order and evenly."""

import random
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longreel.parallel.shards import cut_tokens, overlap, share_heads


@given(st.integers(1, 500), st.integers(1, 9), st.integers(1, 40))
def test_runs_are_whole_units_in_order_and_even(num_tokens, num_ranks, unit):
    runs = cut_tokens(num_tokens, num_ranks, unit)
    assert [token for run in runs for token in run] == list(range(num_tokens))
    assert all(run.start % unit == 0 for run in runs if run)
    units = [-(-len(run) // unit) for run in runs]
    assert max(units) - min(units) <= 1


@given(*[st.integers(0, 30)] * 4)
def test_an_overlap_is_what_is_in_both(a, b, c, d):
    one, other = range(a, a + b), range(c, c + d)
    assert set(overlap(one, other)) == set(one) & set(other)
    assert overlap(one, other).start >= max(a, c)


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=24), st.integers(1, 9))
def test_every_head_has_one_rank_and_ranks_differ_by_one(costs, num_ranks):
    num_ranks = min(num_ranks, len(costs))
    shares = share_heads(costs, num_ranks)
    assert sorted(head for share in shares for head in share) == list(range(len(costs)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert shares == share_heads(costs, num_ranks)


def test_heads_of_one_cost_stay_neighbours():
    assert share_heads([2.0] * 5, 2) == [(0, 1), (2, 3, 4)]


def balance(costs, shares):
    loads = [sum(costs[head] for head in share) for share in shares]
    return max(loads) / mean(loads)


@pytest.mark.parametrize(
    ("num_heads", "num_ranks", "most", "natural"), [(40, 8, 1.06, 1.4), (40, 4, 1.01, 1.2)]
)
def test_heads_of_unlike_density_load_all_ranks_alike(num_heads, num_ranks, most, natural):
    """Log-normal densities, as sparse heads have; `natural`: at least this if left in order."""
    draw = random.Random(0)
    many = [[draw.lognormvariate(0, 0.7) for _ in range(num_heads)] for _ in range(100)]
    in_order = cut_tokens(num_heads, num_ranks, 1)
    assert mean(balance(costs, share_heads(costs, num_ranks)) for costs in many) <= most
    assert mean(balance(costs, in_order) for costs in many) >= natural
