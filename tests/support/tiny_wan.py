"""Tiny random DiTs: diffusers' as the truth, ours with the same weights."""

import torch
from diffusers import SkyReelsV2Transformer3DModel, WanTransformer3DModel

from longreel.models.arch import WanArch
from longreel.models.wan import WanDiT

TEXT_DIM = 24
T2V = WanArch(num_layers=3, num_heads=2, head_dim=20, ffn_dim=56, text_dim=TEXT_DIM)
I2V = WanArch(
    num_layers=3,
    num_heads=2,
    head_dim=20,
    ffn_dim=56,
    text_dim=TEXT_DIM,
    in_channels=36,
    image_dim=28,
)
FLF2V = WanArch(**{**I2V.__dict__, "image_positions": 10})
SKYREELS = WanArch(**{**T2V.__dict__, "fps_embedding": True})


def diffusers_config(arch: WanArch) -> dict:
    config = {
        "patch_size": arch.patch,
        "num_attention_heads": arch.num_heads,
        "attention_head_dim": arch.head_dim,
        "in_channels": arch.in_channels,
        "out_channels": arch.out_channels,
        "text_dim": arch.text_dim,
        "freq_dim": arch.freq_dim,
        "ffn_dim": arch.ffn_dim,
        "num_layers": arch.num_layers,
        "eps": arch.eps,
        "image_dim": arch.image_dim,
        "added_kv_proj_dim": None if arch.image_dim is None else arch.dim,
        "pos_embed_seq_len": arch.image_positions,
        "rope_max_seq_len": arch.max_position,
    }
    return config | ({"inject_sample_info": True} if arch.fps_embedding else {})


def diffusers_model(arch: WanArch, *, skyreels: bool = False) -> torch.nn.Module:
    """Random weights, every parameter of them: diffusers starts some at zero or one."""
    kind = SkyReelsV2Transformer3DModel if skyreels else WanTransformer3DModel
    model = kind(**diffusers_config(arch)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter.add_(0.2 * torch.randn_like(parameter))
        elif parameter.ndim < 2 or "pos_embed" in name:
            parameter.copy_(0.1 * torch.randn_like(parameter))
    return model


def our_model(arch: WanArch, reference: torch.nn.Module) -> WanDiT:
    model = WanDiT(arch).eval().requires_grad_(False)
    model.load_state_dict(reference.state_dict())
    return model


def run(model: WanDiT, *inputs: object, **window: object) -> torch.Tensor:
    state = model.embed(*inputs, **window)
    return model.head(model.run_layers(state, range(model.num_layers)))
