"""Muon moves a convolution as the matrix of its outputs, whatever the layout of its memory."""

import pytest
import torch
from torch import nn

from longreel.parallel.muon import Muon, is_matrix, matrix_of


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_a_convolution_moves_as_torchs_muon_moves_its_matrix(layout):
    torch.manual_seed(0)
    conv = nn.Conv3d(8, 12, 3, bias=False).to(memory_format=layout)
    plain = nn.Parameter(conv.weight.detach().movedim(1, -1).flatten(1).clone())
    ours = Muon([conv.weight], 0.0)
    theirs = torch.optim.Muon([plain], 0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    ours.param_groups[0]["lr"] = 0.02
    for step in range(3):
        gradient = torch.randn(12, 8, 3, 3, 3, generator=torch.Generator().manual_seed(step))
        conv.weight.grad = gradient.to(memory_format=layout)
        plain.grad = gradient.movedim(1, -1).flatten(1).clone()
        ours.step()
        theirs.step()
    moved = conv.weight.detach().movedim(1, -1).flatten(1)
    # the columns stand in another order in one of the layouts, so sums round differently
    torch.testing.assert_close(moved, plain.detach(), rtol=0, atol=1e-3)
    assert matrix_of(conv.weight.detach()).data_ptr() == conv.weight.data_ptr()


def test_what_embeds_biases_or_is_too_small_is_left_to_adamw():
    wide = nn.Parameter(torch.zeros(16, 16))
    assert is_matrix("blocks.0.attn1.to_q.weight", wide)
    assert not is_matrix("condition_embedder.time_proj.weight", wide)
    assert not is_matrix("patch_embedding.weight", nn.Parameter(torch.zeros(16, 4, 1, 2, 2)))
    assert not is_matrix("conv_out.weight", nn.Parameter(torch.zeros(3, 16, 3, 3, 3)))
    assert is_matrix("conv_in.weight", nn.Parameter(torch.zeros(16, 12, 3, 3, 3)))
