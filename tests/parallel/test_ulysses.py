"""Ranks that share a window's tokens learn what one rank learns from all of them."""

import multiprocessing

import pytest
import torch
from ulysses_peer import ARCH, batch, build_loss, share, train_once

from longreel.parallel.ulysses import check_heads


# three latents of 2 x 3 tokens: two ranks cut through the middle of the second
@pytest.mark.parametrize(("num", "num_latents", "levels"), [(2, 4, 1), (2, 3, 2)])
def test_loss_and_gradients_are_those_of_one_rank(num, num_latents, levels, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    context = multiprocessing.get_context("spawn")
    peers = [
        context.Process(target=share, args=(rank, num, tmp_path, num_latents, levels))
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


def test_heads_that_cannot_be_shared_are_refused_before_anything_starts():
    check_heads(ARCH, 4)
    with pytest.raises(ValueError, match=r"run\.sequence_ranks=3.*divisor of 4"):
        check_heads(ARCH, 3)
