"""Adapters start as nothing, learn, merge into the weights, and are named as others name them."""

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import save_file
from tiny_wan import T2V, diffusers_model, our_model, run
from torch import nn

from longreel.jobs.train.lora import adapter_state, add_lora, merged_state
from longreel.models.lora import Adapted, find_adapters
from longreel.models.wan import WanDiT
from longreel.models.weights import Weights

INPUTS = (torch.linspace(-1, 1, 16 * 96).view(1, 16, 2, 6, 8), torch.tensor([[700.0]]))


@pytest.fixture
def model():
    return our_model(T2V, diffusers_model(T2V))


@torch.no_grad()  # with gradients, attention on a CPU rounds otherwise
def made(model):
    return run(model, *INPUTS, torch.ones(1, 5, T2V.text_dim))


def disturb(model):
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B.weight"):
            parameter.data = 0.1 * torch.randn_like(parameter)


def test_it_starts_as_the_model_alone_and_only_adapters_learn(model):
    before = made(model).clone()
    add_lora(model, rank=3, alpha=6.0)
    assert torch.equal(made(model), before)
    learnt = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learnt
    assert all(".lora_" in name for name in learnt)
    # of each layer: four linears of two attentions, two of the feed-forward; two parts each
    assert len(learnt) == T2V.num_layers * (4 + 4 + 2) * 2


def test_merged_weights_do_what_the_adapters_do(model):
    add_lora(model, rank=3, alpha=6.0)
    disturb(model)
    merged = WanDiT(T2V).eval().requires_grad_(False)
    merged.load_state_dict(merged_state(model))
    # x (W + BA) against xW + (xA)B, in float32
    torch.testing.assert_close(made(merged), made(model), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(made(merged), made(our_model(T2V, diffusers_model(T2V))))


def test_the_adapter_file_is_one_that_diffusers_takes_as_its_own(model, tmp_path):
    base = {name: p.clone() for name, p in model.state_dict().items()}
    add_lora(model, rank=3, alpha=6.0)
    disturb(model)
    save_file(adapter_state(model), tmp_path / "pytorch_lora_weights.safetensors")
    state = WanPipeline.lora_state_dict(tmp_path)
    theirs = {name for name, m in diffusers_model(T2V).named_modules() if isinstance(m, nn.Linear)}
    merged = merged_state(model)
    assert len(state) == T2V.num_layers * 10 * 2
    for key, a in state.items():
        name = key.removeprefix("transformer.").removesuffix(".lora_A.weight")
        if name == key.removeprefix("transformer."):
            continue  # the other half
        assert name in theirs
        b = state[f"transformer.{name}.lora_B.weight"]
        # a reader without alpha adds BA as it is
        torch.testing.assert_close(base[f"{name}.weight"] + b @ a, merged[f"{name}.weight"])


def test_the_adapter_file_is_one_that_renders_take(model, tmp_path):
    (tmp_path / "base").mkdir()
    save_file(dict(model.state_dict()), tmp_path / "base/transformer.safetensors")
    add_lora(model, rank=3, alpha=6.0)
    disturb(model)
    save_file(adapter_state(model), tmp_path / "pytorch_lora_weights.safetensors")
    adapted = Adapted(Weights(tmp_path / "base"), find_adapters(f"{tmp_path}", "model.lora"))
    for name, tensor in merged_state(model).items():
        read = torch.empty_like(tensor)
        adapted.copy(name, read)
        torch.testing.assert_close(read, tensor)
