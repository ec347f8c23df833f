"""Muon moves weights as torch does, a convolution as the matrix of its outputs in any layout."""

import pytest
import torch
from torch import nn

from longreel.parallel.muon import Muon, is_matrix, matrix_of

SHAPES = [(12, 8, 3, 3, 3), (24, 16), (16, 24), (24, 16)]  # a convolution, upright, flat, alike


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_weights_move_as_torchs_muon_moves_their_matrices(layout):
    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        conv, *matrices = (torch.randn(shape, generator=generator) for shape in SHAPES)
        return [conv.to(memory_format=layout), *matrices]

    def matrices(weights):
        conv, *others = weights
        return [conv.movedim(1, -1).flatten(1).clone(), *(other.clone() for other in others)]

    weights = [nn.Parameter(weight) for weight in drawn(0)]
    plain = [nn.Parameter(matrix) for matrix in matrices(drawn(0))]
    ours = Muon(weights, 0.1)
    theirs = torch.optim.Muon(plain, 0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    ours.param_groups[0]["lr"] = 0.02
    for step in range(3):
        for weight, gradient in zip(weights, drawn(step), strict=True):
            weight.grad = gradient
        for matrix, gradient in zip(plain, matrices(drawn(step)), strict=True):
            matrix.grad = gradient
        ours.step()
        theirs.step()
    for moved, expected in zip(matrices([w.detach() for w in weights]), plain, strict=True):
        # bfloat16 sums in another order: a step moves a weight by 0.02 or so
        torch.testing.assert_close(moved, expected.detach(), rtol=0, atol=1e-3)


def test_it_goes_on_from_what_it_saved():
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(16, 16)) for _ in range(4)]
    kept = Muon(weights[:2], 0.0)
    for weight in weights[:2]:
        weight.grad = torch.randn(16, 16)
    kept.step()
    for weight, twin in zip(weights[:2], weights[2:], strict=True):
        twin.data.copy_(weight.data)
    other = Muon(weights[2:], 0.0)
    other.load_state_dict(kept.state_dict())
    for one in (kept, other):
        one.param_groups[0]["lr"] = 0.1
    for weight, twin in zip(weights[:2], weights[2:], strict=True):
        weight.grad = torch.randn(16, 16)
        twin.grad = weight.grad.clone()
    kept.step()
    other.step()
    assert all(torch.equal(a, b) for a, b in zip(weights[:2], weights[2:], strict=True))


def test_a_matrix_is_a_view_of_its_weight():
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        weight = torch.zeros(12, 8, 3, 3, 3).to(memory_format=layout)
        matrix_of(weight).add_(1)
        assert (weight == 1).all()


def test_what_embeds_biases_or_is_too_small_is_left_to_adamw():
    wide = nn.Parameter(torch.zeros(16, 16))
    assert is_matrix("blocks.0.attn1.to_q.weight", wide)
    assert not is_matrix("condition_embedder.time_proj.weight", wide)
    assert not is_matrix("patch_embedding.weight", nn.Parameter(torch.zeros(16, 4, 1, 2, 2)))
    assert not is_matrix("conv_out.weight", nn.Parameter(torch.zeros(3, 16, 3, 3, 3)))
    assert is_matrix("conv_in.weight", nn.Parameter(torch.zeros(16, 12, 3, 3, 3)))
