"""Orders of tokens: permutations whose tiles are compact, and the whole number of them."""

import pytest
import torch

from longreel.kernels.order import (
    Grid,
    find_tile,
    hilbert,
    inverse,
    permutation,
    raster_places,
    tile_starts,
)

WAN_480P, WAN_720P = (30, 52), (45, 80)
GRIDS = [
    Grid(21, *WAN_480P, "tiles"),
    Grid(21, *WAN_720P, "tiles"),
    Grid(5, 7, 11, "tiles"),  # nothing divides it: Hilbert
    Grid(3, *WAN_480P, "tiles", by_latent=True),
    Grid(3, *WAN_720P, "tiles", by_latent=True),
    Grid(4, 6, 8, "tiles", tile=16),
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_token_stands_somewhere_once(grid):
    places = permutation(grid)
    assert torch.equal(places.sort().values, torch.arange(grid.num_tokens))
    assert torch.equal(places[inverse(grid)], torch.arange(grid.num_tokens))
    starts = tile_starts(grid)
    assert starts[-1] == grid.num_tokens
    assert 0 < starts.diff().min() <= starts.diff().max() <= grid.tile


@pytest.mark.parametrize(
    ("size", "latents", "tile", "tiles"),
    [
        (WAN_480P, 21, (3, 10, 4), 273),
        (WAN_720P, 21, (3, 5, 8), 630),
        (WAN_480P, 81, (3, 10, 4), 1053),
    ],
)
def test_the_models_grids_have_exact_tiles(size, latents, tile, tiles):
    grid = Grid(latents, *size, "tiles")
    assert find_tile(grid) == tile
    assert len(tile_starts(grid)) - 1 == tiles
    t, y, x = (place[permutation(grid)] for place in raster_places(grid))
    for start in (0, 120 * 5, 120 * (tiles - 1)):
        run = slice(start, start + 120)
        sides = [int(place[run].max() - place[run].min()) + 1 for place in (t, y, x)]
        assert tuple(sides) == tile


def test_latents_that_are_cached_alone_stay_apart():
    grid = Grid(3, *WAN_480P, "tiles", by_latent=True)
    latent = raster_places(grid)[0][permutation(grid)]
    assert torch.equal(latent, torch.arange(3).repeat_interleave(1560))
    assert {1560, 3120} <= set(tile_starts(grid).tolist())


@pytest.mark.parametrize(("sides", "bits"), [((8, 8), 3), ((8, 8, 8), 3), ((16, 16, 16), 4)])
def test_a_hilbert_curve_goes_from_neighbour_to_neighbour(sides, bits):
    axes = torch.meshgrid(*map(torch.arange, sides), indexing="ij")
    places = torch.stack([axis.flatten() for axis in axes])
    along = hilbert(tuple(places), bits)
    assert torch.equal(along.sort().values, torch.arange(places.shape[1]))
    steps = places[:, along.argsort()].diff(dim=1).abs().sum(0)
    assert (steps == 1).all()
