"""A tiny CLIP vision tower with its preprocessing, written as checkpoints hold them. No downloads.

`write_image_processor` and `write_image_encoder` fit together: 28 pixels, 5 tokens an image.
"""

from pathlib import Path

import torch

IMAGE_SIZE = 28
NUM_TOKENS = 5  # 2 x 2 patches of 14 pixels, and one for the class
NUM_LAYERS = 3


def write_image_processor(folder: Path) -> None:
    """The diffusers layout: image_processor/preprocessor_config.json."""
    from transformers import CLIPImageProcessorPil

    CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    ).save_pretrained(folder)


def tiny_clip(image_dim: int):
    """transformers' own CLIPVisionModel, the same for the same width, a multiple of 16."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=image_dim,
        intermediate_size=40,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=16,
        image_size=IMAGE_SIZE,
        patch_size=14,
        hidden_act="gelu",
    )
    with torch.random.fork_rng():
        torch.manual_seed(12)
        model = CLIPVisionModel(config).eval()
        for parameter in model.parameters():  # else biases are all zero, and norms all one
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def write_image_encoder(folder: Path, image_dim: int) -> None:
    """The diffusers layout: image_encoder/config.json and image_encoder/model.safetensors."""
    tiny_clip(image_dim).save_pretrained(folder)


def write_original_image_encoder(file: Path, image_dim: int) -> None:
    """The layout of Wan's models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth."""
    source = {
        name.removeprefix("vision_model."): tensor.clone()
        for name, tensor in tiny_clip(image_dim).state_dict().items()
    }
    tensors = {
        "cls_embedding": source["embeddings.class_embedding"].view(1, 1, -1),
        "pos_embedding": source["embeddings.position_embedding.weight"][None],
        "patch_embedding.weight": source["embeddings.patch_embedding.weight"],
        "head": torch.zeros(image_dim, 8),
    }
    for kind in ("weight", "bias"):
        tensors[f"pre_norm.{kind}"] = source[f"pre_layrnorm.{kind}"]
        tensors[f"post_norm.{kind}"] = source[f"post_layernorm.{kind}"]
        for i in range(NUM_LAYERS):
            ours, theirs = f"encoder.layers.{i}", f"transformer.{i}"
            tensors[f"{theirs}.attn.to_qkv.{kind}"] = torch.cat(
                [source[f"{ours}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            )
            tensors[f"{theirs}.attn.proj.{kind}"] = source[f"{ours}.self_attn.out_proj.{kind}"]
            for old, new in {"layer_norm1": "norm1", "layer_norm2": "norm2"}.items():
                tensors[f"{theirs}.{new}.{kind}"] = source[f"{ours}.{old}.{kind}"]
            for old, new in {"fc1": "mlp.0", "fc2": "mlp.2"}.items():
                tensors[f"{theirs}.{new}.{kind}"] = source[f"{ours}.mlp.{old}.{kind}"]
    named = {f"visual.{name}": tensor for name, tensor in tensors.items()}
    torch.save({**named, "log_scale": torch.zeros([]), "textual.norm.weight": torch.ones(4)}, file)
