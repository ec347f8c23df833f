"""The model of a machine: its sizes are those of the models, its products those torch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from longreel.configs.schema import BlocksConfig
from longreel.models.arch import ARCHS
from longreel.models.wan import WanDiT
from longreel.pipeline.cost import (
    Seconds,
    Speed,
    embed_parameters,
    estimate_seconds,
    head_parameters,
    layer_parameters,
    model_cost,
)
from longreel.pipeline.policies import make_schedule
from longreel.pipeline.simulate import simulate


@pytest.mark.parametrize("name", ["tiny", "wan2.1-t2v-1.3b", "wan2.1-i2v-14b"])
def test_weights_are_as_many_as_the_model_has(name):
    arch = ARCHS[name].dit
    with torch.device("meta"):
        layer = WanDiT(arch, range(1), with_embed=False, with_head=False)
        head = WanDiT(arch, range(0), with_embed=False)
        embed = WanDiT(arch, range(0), with_head=False)
    assert layer_parameters(arch) == count(layer)
    assert head_parameters(arch) == count(head)
    pictures = sum(p.numel() for n, p in embed.named_parameters() if "image_embedder" in n)
    assert embed_parameters(arch) == count(embed) - pictures


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_window_of_wan_on_its_way_is_as_large_as_was_worked_out():
    """8 + 8 latents of 832 x 480, each of two passes: 77 MB for 1.3B, 256 MB for 14B."""
    schedule = make_schedule(BlocksConfig(policy="dualparal"), 4, 12 * 8)
    for name, megabytes in (("wan2.1-t2v-1.3b", 77), ("wan2.1-t2v-14b", 256)):
        cost = model_cost(
            ARCHS[name],
            height=480,
            width=832,
            dtype="bfloat16",
            passes=2,
            seconds=Seconds(task=1.0),
        )
        report = simulate(schedule, 4, cost)
        assert round(report.hop_bytes / 1e6) == megabytes


def test_an_estimate_counts_what_torch_counts():
    """The products of one layer over one window, less the prompt's own keys and values."""
    arch = ARCHS["tiny"].dit
    seconds = estimate_seconds(arch, 64, Speed(flops=1.0, bytes_per_s=1.0))
    model = WanDiT(arch)
    latents, text = torch.zeros(1, 16, 4, 16, 16), torch.zeros(1, 64, 32)
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch counts it on GPUs

    def count(q, k, v, *rest, **more):
        return sdpa_flop_count(q, k, v)

    with torch.inference_mode():
        state = model.embed(latents, torch.tensor([[1.0]]), text)
        with FlopCounterMode(display=False, custom_mapping={fused: count}) as counter:
            model.run_layers(state, range(1))
    tokens, prompt = 4 * 8 * 8, 2 * 2 * 64 * arch.dim**2
    estimate = tokens * (seconds.token + tokens * seconds.pair)
    assert estimate == counter.get_total_flops() - prompt
