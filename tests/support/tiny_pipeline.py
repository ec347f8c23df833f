"""Whole tiny checkpoints in the diffusers layout, and the model shapes that go with them."""

from dataclasses import dataclass
from pathlib import Path

import tiny_image
import tiny_text
import torch
from diffusers import UniPCMultistepScheduler
from tiny_wan import diffusers_model

from longreel.models.arch import ModelArch, VaeArch, WanArch
from longreel.models.vae_build import random_vae

TEXT_DIM = 24
IMAGE_DIM = 32
_VAE = VaeArch(base_dim=4, num_res_blocks=1)
_VAE_2_2 = VaeArch(
    base_dim=8,
    decoder_base_dim=8,
    num_res_blocks=1,
    z_dim=48,
    space_stride=16,
    residual=True,
    patch=2,
)
_SIZES = {"num_layers": 2, "num_heads": 2, "head_dim": 20, "ffn_dim": 48, "text_dim": TEXT_DIM}

ARCHS = {
    "test-t2v": ModelArch(dit=WanArch(**_SIZES), vae=_VAE),
    "test-i2v": ModelArch(
        dit=WanArch(**_SIZES, in_channels=36, image_dim=IMAGE_DIM), vae=_VAE, image="channels"
    ),
    "test-flf2v": ModelArch(
        dit=WanArch(
            **_SIZES,
            in_channels=36,
            image_dim=IMAGE_DIM,
            image_positions=2 * tiny_image.NUM_TOKENS,
        ),
        vae=_VAE,
        image="channels",
    ),
    "test-a14b": ModelArch(dit=WanArch(**_SIZES), vae=_VAE, num_experts=2),
    "test-i2v-a14b": ModelArch(
        dit=WanArch(**_SIZES, in_channels=36), vae=_VAE, image="channels", num_experts=2
    ),
    "test-ti2v": ModelArch(
        dit=WanArch(**_SIZES, in_channels=48, out_channels=48),
        vae=_VAE_2_2,
        image="first-latent",
        per_latent_timestep=True,
    ),
}


@dataclass(frozen=True)
class Checkpoint:
    """What was written, as diffusers' own modules."""

    folder: Path
    parts: dict

    def scheduler(self, shift: float) -> UniPCMultistepScheduler:
        """As the published Wan checkpoints configure it."""
        return UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
        )


def write_checkpoint(folder: Path, arch: ModelArch) -> Checkpoint:
    parts = {"transformer": diffusers_model(arch.dit), "vae": random_vae(arch.vae, seed=1)}
    if arch.num_experts == 2:
        parts["transformer_2"] = diffusers_model(arch.dit)
    for name, module in parts.items():
        module.save_pretrained(folder / name)
    tiny_text.write_tokenizer(folder / "tokenizer")
    tiny_text.write_text_encoder(folder / "text_encoder", TEXT_DIM)
    if arch.dit.image_dim is not None:
        tiny_image.write_image_processor(folder / "image_processor")
        tiny_image.write_image_encoder(folder / "image_encoder", IMAGE_DIM)
    return Checkpoint(folder, parts)


def read_text_parts(folder: Path) -> dict:
    """Tokenizer and text encoder as diffusers' pipelines take them."""
    from transformers import AutoTokenizer, UMT5EncoderModel

    return {
        "tokenizer": AutoTokenizer.from_pretrained(folder / "tokenizer"),
        "text_encoder": UMT5EncoderModel.from_pretrained(
            folder / "text_encoder", dtype=torch.float32
        ),
    }


def read_image_parts(folder: Path) -> dict:
    from transformers import CLIPImageProcessorPil, CLIPVisionModel

    return {
        "image_processor": CLIPImageProcessorPil.from_pretrained(folder / "image_processor"),
        "image_encoder": CLIPVisionModel.from_pretrained(folder / "image_encoder"),
    }
