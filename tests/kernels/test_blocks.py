"""Lists of tiles beside the table they stand for."""

import torch

from longreel.kernels.blocks import Blocks, all_blocks, even_starts

Q_STARTS, K_STARTS = torch.tensor([0, 3, 4, 9]), torch.tensor([0, 2, 7, 8, 12])


def _mask(heads=2):
    mask = torch.rand(1, heads, 3, 4) < 0.5
    mask[0, 0, 1] = False
    return mask


def _tokens(mask_BHRC):
    """The table with a row per query and a column per key."""
    return mask_BHRC.repeat_interleave(Q_STARTS.diff(), 2).repeat_interleave(K_STARTS.diff(), 3)


def test_lists_and_table_are_the_same():
    mask = _mask()
    blocks = Blocks.from_mask(mask, Q_STARTS, K_STARTS)
    assert torch.equal(blocks.mask(), mask)
    assert torch.equal(blocks.visible(), _tokens(mask))
    assert torch.equal(blocks.complement().mask(), ~mask)
    assert (blocks.num_queries, blocks.num_keys, blocks.q_tile, blocks.k_tile) == (9, 12, 5, 5)


def test_what_stands_behind_a_list_is_not_read():
    blocks = Blocks.from_mask(_mask(), Q_STARTS, K_STARTS)
    mask = blocks.mask()
    behind = torch.arange(blocks.columns_BHRK.shape[-1]) >= blocks.counts_BHR[..., None]
    blocks.columns_BHRK[behind] = -9
    assert torch.equal(blocks.mask(), mask)


def test_the_cost_of_a_head_is_its_pairs_of_query_and_key():
    mask = _mask()
    blocks = Blocks.from_mask(mask, Q_STARTS, K_STARTS)
    assert torch.equal(blocks.num_pairs(), _tokens(mask).sum((2, 3)))
    assert blocks.density() == _tokens(mask).double().mean().item()


def test_a_cut_is_that_part_of_the_table():
    blocks = Blocks.from_mask(_mask(), Q_STARTS, K_STARTS)
    for queries in (range(0, 9), range(2, 4), range(5, 8), range(4, 4)):
        for keys in (range(0, 12), range(1, 6), range(8, 12)):
            part = blocks.cut(queries, keys)
            expected = blocks.visible()[:, :, queries.start : queries.stop]
            assert torch.equal(part.visible(), expected[..., keys.start : keys.stop])


def test_heads_are_cut_where_they_differ():
    blocks = Blocks.from_mask(_mask(), Q_STARTS, K_STARTS)
    assert torch.equal(blocks.heads(slice(1, 2)).mask(), blocks.mask()[:, 1:])
    shared = Blocks.from_mask(_mask(heads=1), Q_STARTS, K_STARTS)
    assert shared.heads(slice(1, 2)) is shared


def test_even_tiles_leave_a_shorter_last_one():
    assert even_starts(10, 4).tolist() == [0, 4, 8, 10]
    assert even_starts(8, 4).tolist() == [0, 4, 8]


def test_lists_know_whether_all_their_tiles_of_keys_but_the_last_are_as_long():
    starts = even_starts(10, 4)
    blocks = Blocks.from_mask(torch.rand(1, 1, 3, 3) < 0.5, starts, starts)
    assert blocks.even
    assert blocks.complement().even
    assert not blocks.cut(range(0, 10), range(1, 10)).even  # its first is cut
    assert blocks.cut(range(1, 10), range(4, 10)).even
    assert not Blocks.from_mask(_mask(), Q_STARTS, K_STARTS).even
    assert all_blocks(10, 9, torch.device("cpu"), tile=4).even
