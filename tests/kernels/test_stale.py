"""The stale complement beside sparse attention and the published rule, on inputs that drift."""

from functools import cache

import pytest
import torch

from longreel.kernels.attention import attend
from longreel.kernels.blocks import Blocks, even_starts
from longreel.kernels.stale import refresh

TOKENS, CHANNELS, TILE = 1024, 64, 16
DRIFT = 0.03  # radians a step
WIDTH = 12  # tokens over which inputs change along the sequence, as pictures do


@cache
def _local():
    """5% of all pairs."""
    rows = torch.arange(TOKENS // TILE)
    starts = even_starts(TOKENS, TILE)
    mask = (rows[:, None] - rows[None]).abs() <= 1
    return Blocks.from_mask(mask[None, None], starts, starts)


@cache
def _smoothing():
    places = torch.arange(TOKENS)
    kernel = torch.exp(-0.5 * ((places[:, None] - places) / WIDTH) ** 2)
    return kernel / kernel.norm(dim=1, keepdim=True)


def _smooth():
    return (_smoothing() @ torch.randn(TOKENS, CHANNELS))[None, :, None]


def _drifting(steps, shared):
    """Queries, keys and values that turn from one field to another; what queries and keys share
    draws neighbours together: with more of it, more of the softmax is seen."""
    ends = []
    for _ in range(2):
        common = shared * _smooth()
        ends.append([common + 0.3 * _smooth(), common + 0.3 * _smooth(), _smooth()])
    for step in range(steps):
        turn = torch.tensor(step * DRIFT)
        yield [a * turn.cos() + b * turn.sin() for a, b in zip(*ends, strict=True)]


def _errors(shared):
    """Four steps after a look at everything, and the share of the softmax that is seen."""
    seen, results = _local(), {}
    for step, (q, k, v) in enumerate(_drifting(5, shared)):
        dense = attend(q, k, v)[0]
        if step == 0:
            _, stale = refresh(q, k, v, seen, seen.complement(), "auto")
            _, published = refresh(q, k, v, seen, seen.complement(), "auto", published=True)
            results["dense output kept"] = dense
    results["sparse"] = attend(q, k, v, seen)[0]
    results["stale"] = stale.reuse(q, k, v, step, "auto")
    results["published"] = published.reuse(q, k, v, step, "auto")
    results["share not grown"] = published.reuse(q, k, v, 1, "auto")
    errors = {name: ((y - dense).norm() / dense.norm()).item() for name, y in results.items()}
    return errors, published.share_BLH1.mean().item()


@pytest.mark.parametrize(("shared", "share"), [(0.5, 0.2), (0.7, 0.5), (0.9, 0.84)])
def test_it_errs_less_than_the_published_rule_and_than_plain_sparse(shared, share):
    errors, seen_share = _errors(shared)
    assert seen_share == pytest.approx(share, abs=0.06)
    assert 1.5 * errors["stale"] <= errors["published"]
    assert 1.5 * errors["stale"] <= errors["sparse"]
    assert errors["stale"] < errors["dense output kept"]


@pytest.mark.parametrize("shared", [0.7, 0.9])
def test_where_half_the_softmax_is_seen_it_errs_less_than_a_share_that_is_not_grown(shared):
    """The log-sum-exp follows what the share at the refresh cannot. Over four fields: one alone
    says little, as how far a share drifts depends on where its field turns to."""
    errors = [_errors(shared)[0] for _ in range(4)]
    stale, kept = (sum(of[name] for of in errors) for name in ("stale", "share not grown"))
    assert 1.5 * stale <= kept


@pytest.mark.parametrize("published", [False, True])
def test_while_nothing_changes_it_is_exact_at_the_first_step(published):
    q, k, v = next(_drifting(1, 0.7))
    seen = _local()
    dense, part = refresh(q, k, v, seen, seen.complement(), "auto", published)
    again = part.reuse(q, k, v, 1, "auto")
    torch.testing.assert_close(again, dense, atol=5e-6, rtol=0.0)
