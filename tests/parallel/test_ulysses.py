"""Ranks that share a window's tokens learn what one rank learns from all of them."""

import pytest
import torch
from forked_ranks import forked_processes
from ulysses_peer import ARCH, batch, build_loss, share, train_once

from longreel.models.protocol import Modulation
from longreel.parallel.shards import _cut_modulation
from longreel.parallel.ulysses import check_heads


# three latents of 2 x 3 tokens: two ranks cut the second in the middle
@pytest.mark.parametrize(("num", "num_latents", "levels"), [(2, 4, 1), (2, 3, 2)])
def test_loss_and_gradients_are_those_of_one_rank(num, num_latents, levels, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    peers = [
        forked_processes(monkeypatch).Process(
            target=share, args=(rank, num, tmp_path, num_latents, levels)
        )
        for rank in range(num)
    ]
    for peer in peers:
        peer.start()
    for peer in peers:
        peer.join(timeout=150)
    assert [peer.exitcode for peer in peers] == [0] * num

    expected = train_once(build_loss(), batch(num_latents, levels=levels))
    for rank in range(num):
        made = torch.load(tmp_path / f"{rank}.pt")
        assert made.keys() == expected.keys()
        for name, tensor in expected.items():
            # float32 sums over tokens in two parts: some roundings of 6e-8 of the largest terms
            largest = tensor.abs().max().item()
            assert largest > 0, name
            torch.testing.assert_close(made[name], tensor, rtol=1e-4, atol=3e-6 * largest)


@pytest.mark.parametrize("num", [2, 3, 6])
def test_every_token_keeps_the_row_of_its_latent(num):
    """Three latents of six tokens, each with a row of its own; runs end inside latents."""
    rows_1F = torch.tensor([[4, 0, 2]])
    whole = Modulation(
        embedding_RD=torch.zeros(5, 1), rows_R6D=torch.zeros(5, 6, 1), index_BF=rows_1F
    )
    tokens, share = 18, 18 // num
    seen = []
    for rank in range(num):
        index_BF = _cut_modulation(whole, tokens, range(rank * share, (rank + 1) * share)).index_BF
        seen += index_BF[0].repeat_interleave(share // index_BF.shape[1]).tolist()
    assert seen == [4] * 6 + [0] * 6 + [2] * 6


def test_heads_that_cannot_be_shared_are_refused_before_anything_starts():
    check_heads(ARCH, 4)
    with pytest.raises(ValueError, match=r"run\.sequence_ranks=3.*divisor of 4"):
        check_heads(ARCH, 3)
