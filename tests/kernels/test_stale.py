"""The stale complement beside plain sparse attention and the published rule, on inputs that drift."""

import pytest
import torch

from longreel.kernels.attention import attend
from longreel.kernels.blocks import Blocks, even_starts
from longreel.kernels.stale import refresh

TOKENS, HEADS, CHANNELS, TILE = 512, 2, 32, 16


def _local():
    rows = torch.arange(TOKENS // TILE)
    starts = even_starts(TOKENS, TILE)
    mask = (rows[:, None] - rows[None]).abs() <= 1
    return Blocks.from_mask(mask[None, None], starts, starts)


def _drifting(steps, angle, pull):
    """Queries, keys and values that turn by an angle each step; neighbours are drawn together."""
    smooth = torch.randn(1, TOKENS // TILE, HEADS, CHANNELS).repeat_interleave(TILE, 1)
    ends = [
        [torch.randn(1, TOKENS, HEADS, CHANNELS) + pull * smooth * (i < 2) for i in range(3)]
        for _ in range(2)
    ]
    for step in range(steps):
        turn = torch.tensor(step * angle)
        yield [a * turn.cos() + b * turn.sin() for a, b in zip(*ends, strict=True)]


def _errors(angle, pull, steps=5):
    seen, errors = _local(), {}
    for step, (q, k, v) in enumerate(_drifting(steps, angle, pull)):
        dense = attend(q, k, v)[0]
        if step == 0:
            rest = seen.complement()
            out, stale = refresh(q, k, v, seen, rest, "auto")
            again, published = refresh(q, k, v, seen, rest, "auto", published=True)
            torch.testing.assert_close(out, dense, atol=2e-6, rtol=0.0)
            torch.testing.assert_close(again, dense, atol=2e-6, rtol=0.0)
            continue
        results = {
            "sparse": attend(q, k, v, seen)[0],
            "stale": stale.reuse(q, k, v, step, "auto"),
            "published": published.reuse(q, k, v, step, "auto"),
        }
        errors = {name: ((y - dense).norm() / dense.norm()).item() for name, y in results.items()}
    return errors


@pytest.mark.parametrize("angle", [0.02, 0.05])
@pytest.mark.parametrize("pull", [0.5, 1.0])
def test_it_errs_less_than_the_published_rule_and_than_plain_sparse(angle, pull):
    errors = _errors(angle, pull)
    assert 1.5 * errors["stale"] <= errors["published"]
    assert 1.5 * errors["stale"] <= errors["sparse"]


@pytest.mark.parametrize("pull", [0.5, 1.0])
def test_also_where_the_share_does_not_grow(pull, monkeypatch):
    monkeypatch.setattr("longreel.kernels.stale._GROWTH", 0.0)
    errors = _errors(0.05, pull)
    assert errors["stale"] < errors["published"]


@pytest.mark.parametrize("published", [False, True])
def test_while_nothing_changes_it_is_exact_at_the_first_step(published):
    q, k, v = next(_drifting(1, 0.0, 1.0))
    seen = _local()
    dense, part = refresh(q, k, v, seen, seen.complement(), "auto", published)
    again = part.reuse(q, k, v, 1, "auto")
    torch.testing.assert_close(again, dense, atol=5e-6, rtol=0.0)
