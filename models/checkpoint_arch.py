"""Which architecture a transformer's files hold, from config.json and from the tensors' shapes."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from .arch import ARCHS, WanArch
from .names import rename_transformer
from .weights import Weights, arch_field

_DIFFUSERS = {  # our field: theirs
    "num_layers": "num_layers",
    "num_heads": "num_attention_heads",
    "head_dim": "attention_head_dim",
    "ffn_dim": "ffn_dim",
    "in_channels": "in_channels",
    "text_dim": "text_dim",
    "freq_dim": "freq_dim",
    "eps": "eps",
    "image_dim": "image_dim",
    "image_positions": "pos_embed_seq_len",
    "fps_embedding": "inject_sample_info",
    "max_position": "rope_max_seq_len",
}
_ORIGINAL = {
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "ffn_dim": "ffn_dim",
    "in_channels": "in_dim",
    "out_channels": "out_dim",
    "text_dim": "text_dim",
    "freq_dim": "freq_dim",
    "eps": "eps",
    "fps_embedding": "inject_sample_info",
}
_IMAGE_TYPES = ("i2v", "flf2v")
_IMAGE = "condition_embedder.image_embedder"
_LABELS = {"dim": "dim {}", "num_layers": "{} layers", "in_channels": "{} input channels"}


def read_arch(path: Path, field: str = "model.checkpoint") -> WanArch:
    """From the config.json in a transformer's folder or beside its file, in either layout."""
    file = config_file(path)
    if file is None:
        raise ValueError(
            f"{path} has no config.json beside its weights, so its shape is unknown; download the "
            f"whole folder, or name the model with {arch_field(field)}"
        )
    try:
        config: dict[str, Any] = json.loads(file.read_text())
        if "num_attention_heads" in config:
            return _from_diffusers(config)
        if "dim" in config:
            arch = _from_original(config)
            return _with_image(arch, path) if config.get("model_type") in _IMAGE_TYPES else arch
    except (
        *(OSError, UnicodeDecodeError, json.JSONDecodeError),
        *(TypeError, ArithmeticError, KeyError),
    ) as error:
        raise ValueError(
            f"{file} is no config of a Wan-shaped transformer ({error}); download it again, or set "
            f"{field} to a model we know"
        ) from error
    raise ValueError(
        f"{file} is no config of a Wan-shaped transformer: it has neither num_attention_heads "
        f"(diffusers) nor dim (original); set {field} to a model we know"
    )


def config_file(path: Path) -> Path | None:
    file = (path if path.is_dir() else path.parent) / "config.json"
    return file if file.is_file() else None


def _from_diffusers(config: dict[str, Any]) -> WanArch:
    fields = {ours: config[theirs] for ours, theirs in _DIFFUSERS.items() if theirs in config}
    out_channels = config.get("out_channels") or fields.get("in_channels", 16)
    added = config.get("added_kv_proj_dim")
    if (fields.get("image_dim") is None) != (added is None):
        raise TypeError(f"image_dim={fields.get('image_dim')} with added_kv_proj_dim={added}")
    patch = tuple(config.get("patch_size", (1, 2, 2)))
    return WanArch(**fields, out_channels=out_channels, patch=patch)


def _from_original(config: dict[str, Any]) -> WanArch:
    fields = {ours: config[theirs] for ours, theirs in _ORIGINAL.items() if theirs in config}
    head_dim = config["dim"] // config["num_heads"]
    return WanArch(**fields, head_dim=head_dim, patch=tuple(config.get("patch_size", (1, 2, 2))))


def _with_image(arch: WanArch, path: Path) -> WanArch:
    """Both Wan 2.1, with CLIP tokens, and 2.2, without, say "i2v": only the tensors know."""
    held = _measure(Weights(path, rename_transformer))
    return replace(arch, image_dim=held["image_dim"], image_positions=held["image_positions"])


def check_arch(expected: WanArch, weights: Weights, name: str = "") -> None:
    """ValueError unless telling shapes are as `expected`, which config calls `name`, says."""
    held, wanted = _measure(weights), _shapes(expected)
    wrong = [key for key in held if held[key] != wanted[key]]
    if not wrong:
        return

    def told(values: dict[str, Any]) -> str:
        return ", ".join(_LABELS.get(key, f"{key} {{}}").format(values[key]) for key in wrong)

    fitting = [known for known, arch in ARCHS.items() if _shapes(arch.dit) == held]
    looks = f"looks like {' or '.join(fitting)}" if fitting else "fits no model that we know"
    asked = arch_field(weights.field)
    way_out = f"set {asked} to that, or " if fitting else "set "
    raise ValueError(
        f"{weights.path} is a checkpoint of another model: {asked}{'=' if name else ''}{name} "
        f"means {told(wanted)}; the file has {told(held)}: it {looks}; {way_out}{weights.field} "
        f"to weights of the model that is meant"
    )


def _shapes(arch: WanArch) -> dict[str, Any]:
    """What `_measure` finds in weights of this architecture."""
    return {
        "dim": arch.dim,
        "num_layers": arch.num_layers,
        "in_channels": arch.in_channels,
        "out_channels": arch.out_channels,
        "ffn_dim": arch.ffn_dim,
        "text_dim": arch.text_dim,
        "freq_dim": arch.freq_dim,
        "patch": arch.patch,
        "image_dim": arch.image_dim,
        "image_positions": arch.image_positions,
        "fps_embedding": arch.fps_embedding,
    }


def _measure(weights: Weights) -> dict[str, Any]:
    shapes = weights.shapes
    numbers = [int(m[1]) for name in shapes if (m := re.match(r"blocks\.(\d+)\.", name))]
    try:
        dim, in_channels, *patch = shapes["patch_embedding.weight"]
        image = shapes.get(f"{_IMAGE}.norm1.weight")
        positions = shapes.get(f"{_IMAGE}.pos_embed")
        return {
            "dim": dim,
            "num_layers": max(numbers, default=-1) + 1,
            "in_channels": in_channels,
            "out_channels": shapes["proj_out.weight"][0] // math.prod(patch),
            "ffn_dim": shapes["blocks.0.ffn.net.0.proj.weight"][0],
            "text_dim": shapes["condition_embedder.text_embedder.linear_1.weight"][1],
            "freq_dim": shapes["condition_embedder.time_embedder.linear_1.weight"][1],
            "patch": tuple(patch),
            "image_dim": image[0] if image else None,
            "image_positions": positions[1] if positions else None,
            "fps_embedding": "fps_embedding.weight" in shapes,
        }
    except (KeyError, IndexError, ValueError) as error:
        held = ", ".join(list(shapes)[:3])
        raise ValueError(
            f"{weights.path} holds no Wan-shaped transformer ({error} is missing; it has {held}, "
            f"...): it is another part, or another kind of model; set {weights.field} to a "
            f"Wan-shaped one"
        ) from error
