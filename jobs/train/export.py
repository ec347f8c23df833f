"""A trained model in the diffusers layout, small enough to ship."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...models.arch import VaeArch, WanArch
from ...models.vae_load import load_vae
from ...models.wan import WanDiT, keep_float32

_WEIGHTS = "diffusion_pytorch_model.safetensors"


def save_transformer(dit: WanDiT, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """transformer/: the weights in `dtype` but for those that stay in float32."""
    tensors = {
        name: tensor.to(torch.float32 if _stays_float32(name) else dtype)
        for name, tensor in dit.state_dict().items()
    }
    write_transformer(tensors, dit.arch, folder)


def write_transformer(tensors: Mapping[str, Tensor], arch: WanArch, folder: Path) -> None:
    """transformer/, of these weights."""
    folder.mkdir(parents=True, exist_ok=True)
    held = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    save_file(held, folder / _WEIGHTS, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(transformer_config(arch), indent=2) + "\n")


def _stays_float32(name: str) -> bool:
    """In the file: `time_proj` is a tenth of a small model, and is only computed in float32."""
    return keep_float32(name) and "time_proj" not in name


def save_vae(source: Path, arch: VaeArch, folder: Path) -> None:
    """vae/, of whatever `load_vae` reads, in float16: enough for colours of eight bits."""
    vae = load_vae(source, arch, device="cpu", dtype=torch.float16)
    vae.save_pretrained(folder)


def transformer_config(arch: WanArch) -> dict[str, Any]:
    """What diffusers' WanTransformer3DModel is built from."""
    return {
        "_class_name": "WanTransformer3DModel",
        "num_layers": arch.num_layers,
        "num_attention_heads": arch.num_heads,
        "attention_head_dim": arch.head_dim,
        "ffn_dim": arch.ffn_dim,
        "in_channels": arch.in_channels,
        "out_channels": arch.out_channels,
        "text_dim": arch.text_dim,
        "freq_dim": arch.freq_dim,
        "patch_size": list(arch.patch),
        "eps": arch.eps,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": arch.max_position,
        "image_dim": arch.image_dim,
        "added_kv_proj_dim": None if arch.image_dim is None else arch.dim,
        "pos_embed_seq_len": arch.image_positions,
    }
