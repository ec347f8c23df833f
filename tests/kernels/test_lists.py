"""Lists of every builder beside the rules they come from, and their sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longreel.kernels import order
from longreel.kernels.attention import attend, attend_reference
from longreel.kernels.blocks import Blocks
from longreel.kernels.order import permutation
from longreel.kernels.pooled import pooled
from longreel.kernels.spatiotemporal import attend_spatiotemporal, bands, choose_temporal
from longreel.kernels.static_lists import local, radial, tile_window
from longreel.kernels.tiles import Window, gaps, has_exact_tiles, places, tiles_of

CPU = torch.device("cpu")
P480, P720 = (30, 52), (45, 80)


def _window(latents, size, order="tiles", *, context=(), tile=128):
    times = tuple(range(latents))
    return Window(times, tuple(context), *size, order, bool(context), tile)


# derived beforehand from the published rules, not from this code
@pytest.mark.parametrize(
    ("latents", "size", "density"),
    [(21, P480, 0.34), (41, P480, 0.24), (81, P480, 0.15), (21, P720, 0.26)],
)
def test_radial_is_as_sparse_as_its_rule(latents, size, density):
    assert radial(_window(latents, size, "raster"), 0.2).density() == pytest.approx(
        density, abs=0.02
    )


@settings(max_examples=60, deadline=None)
@given(
    latents=st.integers(1, 9),
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    context=st.sampled_from([(), (-1,), (-2, -1)]),
    tile=st.sampled_from([16, 32, 128]),
)
def test_radial_shows_every_tile_itself(latents, size, context, tile):
    """Also one that is short, as the last of a latent or of a window is, or that holds latents
    that are."""
    window = _window(latents, size, "raster", context=context, tile=tile)
    mask_RC = radial(window, 0.2).mask()[0, 0]
    assert mask_RC.diagonal().all()


@pytest.mark.parametrize(
    ("latents", "size", "context"), [(21, (6, 6), ()), (3, P480, (-3, -2, -1)), (31, (22, 40), ())]
)
def test_radial_leaves_nobody_blind_in_windows_that_presets_have(latents, size, context):
    """shapes, self-forcing-1.3b and wan2.2-ti2v-5b."""
    blocks = radial(_window(latents, size, "raster", context=context), 0.2)
    assert (blocks.counts_BHR > 0).all()


@pytest.mark.parametrize("size", [P480, P720], ids=["480p", "720p"])
def test_both_bands_are_as_sparse_as_their_rule(size):
    blocks = bands(_window(21, size, "raster"), 0.3, CPU).blocks
    for head in range(2):
        assert blocks.heads([head]).density() == pytest.approx(0.35, abs=0.02)


def _density_near(window, reach):
    """Of tiles whose boxes are no further apart than this in time, rows and columns."""
    queries, keys = tiles_of(window)
    mask_RC = (gaps(queries, keys) <= torch.tensor(reach)).all(-1)
    return Blocks.from_mask(mask_RC[None, None], queries.starts, keys.starts).density()


@pytest.mark.parametrize(
    ("size", "of_raster", "of_tiles", "of_hilbert"),
    [(P480, 0.267, 0.215, 0.212), (P720, 0.170, 0.125, 0.094)],
    ids=["480p", "720p"],
)
def test_compact_tiles_cover_a_box_with_less(size, of_raster, of_tiles, of_hilbert, monkeypatch):
    box = (4, 8, 12)
    assert _density_near(_window(21, size, "raster"), box) == pytest.approx(of_raster, abs=0.02)
    assert _density_near(_window(21, size), box) == pytest.approx(of_tiles, abs=0.02)
    monkeypatch.setattr(order, "find_tile", lambda grid: None)
    for cached in (order.permutation, order.tile_starts, tiles_of):
        cached.cache_clear()
    assert _density_near(_window(21, size), box) == pytest.approx(of_hilbert, abs=0.02)
    for cached in (order.permutation, order.tile_starts, order.inverse, tiles_of):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("size", "density"), [(P480, 18 * 30 * 24 / 32760), (P720, 18 * 25 * 24 / 75600)]
)
def test_a_tile_window_gives_every_tile_as_many(size, density):
    blocks = tile_window(_window(21, size), (18, 24, 24))
    assert blocks.alike
    assert blocks.density() == pytest.approx(density)
    assert blocks.mask()[0, 0].diagonal().all()


def test_a_tile_window_goes_by_place_where_times_are_left_out():
    """Two latents far before the block, and one next to it: none of a box of five is far."""
    own, cached = (20, 21, 22), (0, 1, 19)
    window = Window(own, cached, 16, 16, "tiles", True, 128)
    by_latent = tile_window(window, (5, 16, 16)).mask()[0, 0].unflatten(1, (6, 2))
    for key, time in enumerate(own + cached):
        assert (by_latent[:, key] == (time >= 19)).all()


def test_a_disc_is_whatever_tiles_have_a_token_in_it():
    window = _window(2, (12, 10), tile=16, context=(7, 2))
    blocks = local(window, 3)
    q = places(window, window.times, window.own)
    k = torch.cat([q, places(window, window.context_times, window.context)])
    inside = ((q[:, None, 1:] - k[None, :, 1:]) ** 2).sum(-1) <= 9
    assert not (inside & ~blocks.visible()[0, 0]).any()
    assert blocks.density() < 0.7


def test_radial_by_the_pair_for_latents_of_whole_blocks():
    """Latents of 256 tokens: two blocks; decay 1 keeps what the law says for each distance."""
    window = _window(9, (16, 16), "raster")
    mask = radial(window, 0.5).mask()[0, 0].unflatten(0, (9, 2)).unflatten(2, (9, 2))
    for i in range(9):
        for j in range(9):
            distance = abs(i - j)
            pair = mask[i, :, j]
            length = 512 / 2 ** distance.bit_length()
            if j == 0 or distance <= 1:
                assert pair.all()
            elif length < 128 and distance % int(128 / length):
                assert not pair.any()
            else:  # at least the floor of 128 either way, which fills the blocks beside it too
                assert pair.diagonal().all()


def test_context_takes_part_by_its_time():
    own, cached = (4, 5), (3, 0)
    window = Window(own, cached, 16, 16, "raster", True, 128)
    blocks = radial(window, 0.2)
    assert (blocks.num_queries, blocks.num_keys) == (512, 1024)
    by_latent = blocks.mask()[0, 0].unflatten(0, (2, 2)).unflatten(2, (4, 2))
    assert by_latent[:, :, 3].all()  # the first latent is seen by all
    assert by_latent[0, :, 2].all()  # time 3 is next to 4


@pytest.mark.parametrize("mass", [None, 0.6])
def test_pooled_keeps_the_tiles_with_the_highest_scores(mass):
    window = _window(2, (12, 10), tile=16, context=(5,))
    q, k = torch.randn(1, 240, 2, 20), torch.randn(1, 360, 2, 20)
    blocks = pooled(q, k, window, 0.3, mass)
    queries, keys = tiles_of(window)
    for h in range(2):
        for r, (a, b) in enumerate(zip(queries.starts, queries.starts[1:], strict=False)):
            mean = q[0, a:b, h].mean(0)
            scores = torch.stack(
                [
                    mean @ k[0, c:d, h].mean(0)
                    for c, d in zip(keys.starts, keys.starts[1:], strict=False)
                ]
            )
            share = (scores / 20**0.5).softmax(0)
            chosen = blocks.mask()[0, h, r]
            if mass is None:
                assert chosen.sum() == round(0.3 * keys.num)
            else:
                assert share[chosen].sum() >= mass
                assert share[chosen].sum() - share[chosen].min() < mass
            assert share[chosen].min() >= share[~chosen].max()


def test_lists_with_padding_behind_them_are_read_to_their_end():
    window = _window(2, (12, 10), tile=16)
    q, k, v = (torch.randn(1, 240, 2, 20) for _ in range(3))
    blocks = pooled(q, k, window, 0.3, 0.6)
    torch.testing.assert_close(attend(q, k, v, blocks)[0], attend_reference(q, k, v, blocks)[0])


def test_each_head_takes_the_band_that_loses_less():
    """A head that looks at its own latent is spatial; one that looks at its own place, temporal."""
    window = _window(6, (8, 8), "raster", tile=16)
    latent = torch.nn.functional.one_hot(torch.arange(6).repeat_interleave(64), 64).float()
    place = torch.nn.functional.one_hot(torch.arange(64).repeat(6), 64).float()
    q = k = 12 * torch.stack([latent, place], dim=1)[None]
    v = torch.randn(1, 384, 2, 64)
    both = bands(window, 0.3, CPU)
    assert choose_temporal(q, k, v, both).tolist() == [[False, True]]
    out = attend_spatiotemporal(q, k, v, window, 0.3, "auto")
    dense = attend(q, k, v)[0]
    assert (out - dense).square().mean() < 0.05 * dense.square().mean()


def test_bands_of_everything_are_dense_attention():
    window = Window((2, 3), (0, 5), 8, 8, "raster", True, 16)
    q, k, v = torch.randn(2, 128, 3, 20), torch.randn(2, 256, 3, 20), torch.randn(2, 256, 3, 20)
    torch.testing.assert_close(
        attend_spatiotemporal(q, k, v, window, 1.0, "auto"), attend(q, k, v)[0], atol=2e-6, rtol=0.0
    )


def test_a_grid_without_exact_tiles_is_told_apart():
    assert has_exact_tiles(_window(21, P480))
    assert not has_exact_tiles(_window(5, (7, 11)))
    assert not has_exact_tiles(_window(21, P480, context=(30,)))
    assert len(permutation(_window(5, (7, 11)).own)) == 385
