"""Low-rank adapters on the linears of a DiT's layers, and their published file layout."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_PREFIX = "transformer."  # how diffusers tells a pipeline's parts apart


class LoraLinear(nn.Module):
    """A frozen linear and a low-rank sum; it starts as the linear alone."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        device = base.weight.device
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, device=device)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, device=device)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.scale * self.lora_B(self.lora_A(x))
        return y


def add_lora(model: nn.Module, rank: int, alpha: float) -> None:
    """On every linear of attention and feed-forward; all else is frozen."""
    model.requires_grad_(False)
    layers: Any = model.blocks
    for layer in layers.values():
        for name, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear) and name.split(".")[0] in ("attn1", "attn2", "ffn"):
                path, _, leaf = name.rpartition(".")
                layer.get_submodule(path)._modules[leaf] = LoraLinear(module, rank, alpha)


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """As diffusers and peft name it. The scale is in B, for readers that take alpha as the rank."""
    state = {}
    for name, lora in _adapters(model):
        state[f"{_PREFIX}{name}.lora_A.weight"] = lora.lora_A.weight.detach().contiguous()
        scaled = lora.lora_B.weight.detach() * lora.scale
        state[f"{_PREFIX}{name}.lora_B.weight"] = scaled.contiguous()
    return state


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The checkpoint's own names, the low-rank sums added to the weights they stand beside."""
    state = {
        name.replace(".base.", "."): tensor
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    }
    with torch.no_grad():
        for name, lora in _adapters(model):
            added = lora.scale * lora.lora_B.weight @ lora.lora_A.weight
            state[f"{name}.weight"] = lora.base.weight + added
    return state


def _adapters(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module
