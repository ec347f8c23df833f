"""CLIP's vision tower as Wan 2.1 reads it: from a checkpoint in either layout, or from a seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from .importing import importing
from .names import rename_clip
from .random_weights import fill_random
from .weights import Weights, check_module, load_module

if TYPE_CHECKING:
    from PIL import Image
    from transformers import CLIPVisionConfig, CLIPVisionModel

RANDOM_SEED = 0  # of the encoder that needs no files

_CLIP_MEAN = 0.48145466, 0.4578275, 0.40821073
_CLIP_STD = 0.26862954, 0.26130258, 0.27577711
_VIT_H_HEADS = 16  # the one number of ViT-H/14 that shapes do not tell


@dataclass(frozen=True)
class ImageSource:
    """Where the encoder comes from, and what the DiT reads from it."""

    encoder: Path | None  # diffusers folder or original .pth file; none: untrained weights
    processor: Path | None  # folder with preprocessor_config.json; none: as Wan's own code
    image_dim: int


def encode_images(
    images: Sequence["Image.Image"],
    source: ImageSource,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Tensor:
    """(1, N * S, D) for N images of S tokens (257 for ViT-H/14), one image after the other.

    The hidden states before the last layer, which is what Wan was trained with. Computed in float32
    (0.6e9 weights, once per render) and rounded to `dtype` at the end.
    """
    try:
        return _encode(images, source, device, dtype)
    finally:
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()  # or other processes on this GPU would lack 2.5 GB


@torch.no_grad()
def _encode(
    images: Sequence["Image.Image"],
    source: ImageSource,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Tensor:
    encoder = load_image_encoder(source.encoder, source.image_dim, device=device)
    pixels_NCHW = _pixels(images, source, encoder.config.image_size)
    output = encoder(pixels_NCHW.to(device), output_hidden_states=True)
    tokens_NSD: Tensor = output.hidden_states[-2].to(dtype)
    return rearrange(tokens_NSD, "n s d -> 1 (n s) d")


def _pixels(images: Sequence["Image.Image"], source: ImageSource, size: int) -> Tensor:
    """As the encoder reads them. ValueError: its preprocessing makes them for another one."""
    if source.processor is None:
        return _stretch(images, size)
    processor = _load_processor(source.processor)
    pixels_NCHW: Tensor = processor(images=list(images), return_tensors="pt")["pixel_values"]
    if pixels_NCHW.shape[-2:] != (size, size):
        raise ValueError(
            f"model.checkpoint: {source.processor} makes pictures of "
            f"{tuple(pixels_NCHW.shape[-2:])} and the image encoder in {source.encoder} "
            f"reads ({size}, {size}): they belong to different models; use one checkpoint for both"
        )
    return pixels_NCHW


def _stretch(images: Sequence["Image.Image"], size: int) -> Tensor:
    """As the original layout's own code has it, which holds no file about it: nothing is cut off,
    and nothing is smoothed where a picture is made smaller."""
    pixels = [torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255 for image in images]
    scaled = [nn.functional.interpolate(one, (size, size), mode="bicubic") for one in pixels]
    mean, std = (torch.tensor(values)[:, None, None] for values in (_CLIP_MEAN, _CLIP_STD))
    return (torch.cat(scaled) - mean) / std


def _load_processor(path: Path) -> Any:
    """CLIPImageProcessor on PIL: torchvision's, where it is installed, makes other pixels."""
    with importing():
        import transformers

        # the name by which 5.x tells it from torchvision's; before, the plain name was PIL's
        name = "CLIPImageProcessorPil"
        kind = getattr(transformers, name, None) or transformers.CLIPImageProcessor
    try:
        return kind.from_pretrained(str(path), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.checkpoint: {path / 'preprocessor_config.json'} is not there or not readable, "
            f"so it is unknown how the image encoder wants its pictures; download that folder again"
        ) from error


def load_image_encoder(
    path: Path | None, image_dim: int, *, device: torch.device | str
) -> "CLIPVisionModel":
    """From a diffusers folder or an original file; none: untrained weights, always the same."""
    encoder, weights = _open(path, image_dim)
    if weights is None:
        fill_random(encoder, RANDOM_SEED, device=device, dtype=torch.float32)
    else:
        load_module(_tower(encoder), weights, device=device, dtype=torch.float32)
    for name, buffer in list(encoder.named_buffers()):
        assert name.endswith("position_ids"), f"{name} is in no file and nothing fills it"
        parent, _, leaf = name.rpartition(".")
        counted = torch.arange(buffer.numel(), device=device).view(buffer.shape)
        encoder.get_submodule(parent).register_buffer(leaf, counted, persistent=False)
    return encoder


def check_image_encoder(source: ImageSource, positions: int | None) -> None:
    """ValueError unless the files are whole and hold an encoder that fits; reads headers only.

    `positions`: of all tokens of two pictures, where the DiT has such.
    """
    from PIL import Image

    encoder, weights = _open(source.encoder, source.image_dim)
    assert weights is not None
    check_module(_tower(encoder), weights)
    size, patch = encoder.config.image_size, encoder.config.patch_size
    tokens = 1 + (size // patch) ** 2
    if positions not in (None, 2 * tokens):
        raise ValueError(
            f"model.checkpoint: the image encoder in {source.encoder} makes {tokens} tokens of a "
            f"picture and model.arch has {positions} positions for those of two: it belongs to "
            "another model; set model.arch to what the checkpoint holds"
        )
    _pixels([Image.new("RGB", (size, size))], source, size)


def _open(path: Path | None, image_dim: int) -> tuple["CLIPVisionModel", Weights | None]:
    """The encoder on the meta device, and what is to fill it."""
    with importing():
        from transformers import CLIPVisionModel
    weights = None if path is None else Weights(path, rename_clip)
    config = _config(path, weights, image_dim)
    if config.hidden_size != image_dim:
        raise ValueError(
            f"model.checkpoint: the image encoder in {path} makes {config.hidden_size} channels "
            f"and model.arch reads {image_dim}: it belongs to another model; set model.arch to "
            f"what the checkpoint holds"
        )
    with torch.device("meta"):
        encoder: CLIPVisionModel = CLIPVisionModel(config)
    encoder.train(False).requires_grad_(False)
    return encoder, weights


def _tower(encoder: "CLIPVisionModel") -> nn.Module:
    """Releases of transformers differ in whether it sits inside `vision_model`."""
    tower: nn.Module = getattr(encoder, "vision_model", encoder)
    return tower


def _config(path: Path | None, weights: Weights | None, image_dim: int) -> "CLIPVisionConfig":
    from transformers import CLIPVisionConfig

    if path is None or weights is None:
        return CLIPVisionConfig(
            hidden_size=image_dim,
            intermediate_size=2 * image_dim,
            num_hidden_layers=2,
            num_attention_heads=1,
            image_size=224,
            patch_size=14,
        )
    if path.is_dir():
        try:
            (path / "config.json").stat()  # transformers would take its defaults instead
            return CLIPVisionConfig.from_pretrained(str(path), local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"model.checkpoint: {path / 'config.json'} is not there or not readable, so the "
                f"size of the image encoder is unknown; download that folder again"
            ) from error
    return _config_of(weights)


def _config_of(weights: Weights) -> "CLIPVisionConfig":
    """Original files come without a config; the shapes say all but the constants of ViT-H/14."""
    from transformers import CLIPVisionConfig

    telling = {
        "embeddings.patch_embedding.weight": 4,
        "embeddings.position_embedding.weight": 2,
        "encoder.layers.0.mlp.fc1.weight": 2,
    }
    lost = [name for name, ndim in telling.items() if len(weights.shapes.get(name, ())) != ndim]
    if lost:
        raise ValueError(
            f"model.checkpoint: {weights.path} is not the CLIP that Wan 2.1 uses: it has no "
            f"{lost[0]}; point at models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth or at a "
            f"folder in the diffusers layout"
        )
    (dim, _, patch, _), (positions, _), (hidden, _) = (weights.shapes[name] for name in telling)
    layers = {name.split(".")[2] for name in weights.shapes if name.startswith("encoder.layers.")}
    return CLIPVisionConfig(
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=len(layers),
        num_attention_heads=_VIT_H_HEADS,
        image_size=round((positions - 1) ** 0.5) * patch,  # one position is the class token's
        patch_size=patch,
        hidden_act="gelu",
    )
