"""Whole tiny checkpoints in the layouts of Wan's authors, with the weights of a diffusers one."""

from pathlib import Path

import layouts
import tiny_image
import tiny_pipeline
import tiny_text
import tiny_vae
import torch
from torch import nn

from longreel.models.arch import ModelArch

VAE_FILE = "Wan2.1_VAE.pth"
TEXT_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
CLIP_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"


def write_original(folder: Path, parts: dict[str, nn.Module], arch: ModelArch) -> None:
    """`parts` as `tiny_pipeline.write_checkpoint` returns them."""
    if arch.num_experts == 2:
        layouts.write_original_transformer(folder / "high_noise_model", parts["transformer"])
        layouts.write_original_transformer(folder / "low_noise_model", parts["transformer_2"])
    else:
        layouts.write_original_transformer(folder, parts["transformer"])
    names = {
        name: tiny_vae.original_name(name, arch.vae.num_res_blocks, arch.vae.residual)
        for name in parts["vae"].state_dict()
    }
    state = parts["vae"].state_dict()
    torch.save({names[name]: tensor for name, tensor in state.items()}, folder / VAE_FILE)
    tiny_text.write_tokenizer(folder / "google" / "umt5-xxl")
    tiny_text.write_original_text_encoder(folder / TEXT_FILE, tiny_pipeline.TEXT_DIM)
    if arch.dit.image_dim is not None:
        tiny_image.write_original_image_encoder(folder / CLIP_FILE, tiny_pipeline.IMAGE_DIM)


def write_self_forcing(file: Path, model: nn.Module) -> None:
    """One file as Self-Forcing publishes it: the averaged weights beside those in training."""
    state = {f"model.{layouts.original_name(n)}": t for n, t in model.state_dict().items()}
    in_training = {name: torch.full_like(tensor, torch.nan) for name, tensor in state.items()}
    torch.save({"generator": in_training, "generator_ema": state, "step": 600}, file)
