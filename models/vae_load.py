"""The VAE of a checkpoint: a diffusers folder, or an original Wan file."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .arch import VaeArch
from .vae_build import build_vae, vae_config
from .vae_names import diffusers_name
from .weights import Weights, arch_field, check_module, load_module

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

_STATISTICS = ("latents_mean", "latents_std")  # not a matter of shape: a checkpoint's own count


def load_vae(
    path: Path,
    arch: VaeArch,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    field: str = "model.checkpoint",
) -> "AutoencoderKLWan":
    """From a diffusers checkpoint, its vae/ folder alone, or a file in either naming. `field`, here
    and below, is whose value led to it."""
    vae, weights = _open(path, arch, field)
    load_module(vae, weights, device=device, dtype=dtype)
    return vae


def check_vae(path: Path, arch: VaeArch, field: str = "model.checkpoint") -> None:
    """ValueError unless the files are whole and hold this very VAE; reads headers only."""
    vae, weights = _open(path, arch, field)
    check_module(vae, weights)


def check_vae_config(path: Path, arch: VaeArch, field: str = "model.checkpoint") -> None:
    """The same of a diffusers folder whose tensors are known to be those of its config.json."""
    _checked_statistics(_source(path) / "config.json", arch, field)


def _source(path: Path) -> Path:
    return path / "vae" if (path / "vae").is_dir() else path


def _open(path: Path, arch: VaeArch, field: str) -> tuple["AutoencoderKLWan", Weights]:
    """The VAE on the meta device, and what is to fill it."""
    source = _source(path)
    config = source / "config.json"
    statistics = _checked_statistics(config, arch, field) if config.is_file() else {}
    with torch.device("meta"):
        vae = build_vae(arch, **statistics)
    # names that are diffusers' already pass through
    return vae, Weights(source, partial(diffusers_name, arch=arch), field)


def _checked_statistics(path: Path, arch: VaeArch, field: str) -> dict[str, Any]:
    """What config.json says of the latents, once the rest of it agrees with `arch`."""
    try:
        stated = json.loads(path.read_text())
        # files older than a field leave it out, and mean what Wan 2.1 has
        theirs = {**vae_config(VaeArch()), **stated}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is corrupt; download it again") from error
    ours = vae_config(arch)
    for config in (ours, theirs):
        config["decoder_base_dim"] = config["decoder_base_dim"] or config["base_dim"]
    wrong = [key for key in ours if key not in _STATISTICS and theirs[key] != ours[key]]
    if wrong:
        told = ", ".join(f"{key}={theirs[key]} instead of {ours[key]}" for key in wrong)
        raise ValueError(
            f"{path} describes another VAE than is meant: {told}; set {arch_field(field)} to what "
            f"it describes, or {field} to the weights of this model"
        )
    z_dim = ours["z_dim"]
    statistics = {key: theirs[key] for key in _STATISTICS if key in stated}
    for key, values in statistics.items():
        if len(values) != z_dim:
            raise ValueError(
                f"{path}: {key} has {len(values)} values for latents of {z_dim} channels, which "
                "would scale none of them rightly; download it again"
            )
    return statistics
