"""Lists by score, by kernels beside their definitions, in Triton's interpreter."""

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from longreel.kernels.blocks import even_starts
from longreel.kernels.pooled import keep_reference, means_reference
from longreel.kernels.pooled_triton import keep_triton, means_triton


@pytest.mark.parametrize("tiles", [1, 5, 64, 300])
@pytest.mark.parametrize("mass", [None, 0.3, 0.9, 0.99])
def test_the_kernel_lists_what_the_definition_lists(tiles, mass):
    """Columns behind the end of a list as well: bit for bit."""
    scores = 3 * torch.randn(1, 2, 1, tiles)
    num = max(1, round(0.3 * tiles))
    ours, exact = keep_triton(scores, num, mass), keep_reference(scores, num, mass)
    for a, b in zip(ours, exact, strict=True):
        assert a.dtype == torch.int32
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_one_tile_that_holds_all_is_the_list():
    scores = torch.zeros(1, 1, 1, 40)
    scores[..., 7] = 500.0  # the others' shares are 0
    columns, counts = keep_triton(scores, 4, 0.9)
    assert (counts.item(), columns[0, 0, 0, 0].item()) == (1, 7)
    assert counts.equal(keep_reference(scores, 4, 0.9)[1])


@pytest.mark.parametrize(("mass", "count"), [(None, 3), (0.35, 4), (1.0, 10)])
def test_of_equal_scores_the_first_are_kept(mass, count):
    columns, counts = keep_triton(torch.zeros(1, 1, 2, 10), 3, mass)
    assert counts.tolist() == [[[count, count]]]
    assert columns[0, 0, 0, :count].tolist() == list(range(count))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("starts", [even_starts(150, 32), torch.tensor([0, 3, 100, 100, 240])])
def test_means_of_tiles_of_any_length(starts, dtype):
    tokens = int(starts[-1])
    x = torch.randn(2, tokens, 3, 3 * 20, dtype=dtype)[..., 20:40]  # cut out of one projection
    means = means_triton(x, starts.to(torch.int32))
    exact = means_reference(x, starts, None)
    empty = (starts.diff() == 0)[:, None]  # nothing reads it
    torch.testing.assert_close(means, exact.masked_fill(empty, 0), rtol=1e-5, atol=1e-6)
