"""Where each part of a checkpoint is: a local folder or file, or the hub, in either layout."""

import os
import re
import threading
from pathlib import Path

import torch

from ..configs.errors import first_line
from ..configs.files import expand
from .arch import WanArch
from .checkpoint_arch import check_arch, config_file, read_arch
from .names import rename_transformer
from .shipped import PREFIX, shipped_folder
from .tensor_files import SAFETENSORS, TORCH
from .wan import WanDiT
from .weights import Weights, arch_field, check_module

fetching = threading.Event()  # while the hub is asked: it has timeouts of its own

# folders and files of each part, best first: diffusers' layout, then the authors' own
_PLACES = {
    "transformer": ("transformer", "high_noise_model"),
    "transformer_2": ("transformer_2", "low_noise_model"),
    "vae": ("vae", "Wan2.2_VAE.pth", "Wan2.1_VAE.pth", "*VAE*.pth", "*VAE*.safetensors"),
    "text_encoder": ("text_encoder", "models_t5_*"),
    "tokenizer": ("tokenizer", "google/umt5-xxl"),
    "image_encoder": ("image_encoder", "models_clip_*"),
    "image_processor": ("image_processor", "models_clip_*"),
    "lora": ("pytorch_lora_weights.safetensors", "adapter_model.safetensors"),
}
# of a transformer that lies in the root: Wan 2.1, SkyReels-V2
_ROOT_FILES = ("diffusion_pytorch_model*", "model*.safetensors*", "config.json")
_OTHER_PARTS = re.compile("vae|t5|clip", re.IGNORECASE)
_HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::([^:]+))?")


def locate(reference: str, part: str, field: str = "model.checkpoint") -> Path:
    """The folder or file of one part of a local checkpoint, `shipped:NAME`, or one on the hub.

    A hub id (`org/name`, `org/name:path`) is downloaded first.

    `part` is one of transformer, transformer_2, vae, text_encoder, tokenizer, image_encoder,
    image_processor and lora, an adapter. The authors' own layout has no image processor: there it
    is the image encoder's file, which means that pictures are prepared as the authors' code does.
    `field` is whose value `reference` is.
    """
    assert part in _PLACES, part
    if reference.startswith(PREFIX):
        reference = str(shipped_folder(reference, field, part))
    path = expand(reference)
    if not os.path.exists(path):  # Path.exists raises for names that are too long
        hub = _HUB_ID.fullmatch(reference)
        if hub is None:
            raise ValueError(
                f"{field}={reference} is no file or folder here and no hub id (org/name, or "
                f"org/name:path), so there are no weights to load; correct it"
            )
        path = _download(reference, hub[1], hub[2], part, field)
    if path.is_file():
        if part == "transformer_2":
            raise ValueError(
                f"{field}={reference} is one file, which holds one expert, and model.arch names a "
                f"model of two; set {field} to a folder that has both, as transformer and "
                f"transformer_2, or as high_noise_model and low_noise_model"
            )
        if part not in ("transformer", "lora"):
            of_render = field == "model.checkpoint"
            raise ValueError(
                f"{field}={reference} is one file, which holds no {part}; set "
                f"{'model.transformer to it, and ' if of_render else ''}{field} to a folder or hub "
                f"id that has {'the other parts' if of_render else 'every part'}"
            )
        return path
    found = _find(path, part)
    if found is None:
        looked = ", ".join(_patterns(part))
        raise ValueError(
            f"{field}={reference} has no {part} in {path} (looked for {looked}), so the model "
            f"cannot be loaded; complete the download, or set {field} to a checkpoint that has it"
        )
    return found


def open_transformer(
    path: Path, arch: WanArch, name: str = "", field: str = "model.checkpoint"
) -> Weights:
    """The tensors of a located DiT, once its headers and config agree with the arch that config
    calls `name`; `field` is whose value led to it."""
    weights = Weights(path, rename_transformer, field)
    check_arch(arch, weights, name)
    if config_file(path) is not None:
        stated, asked = read_arch(path, field), arch_field(field)
        for key in ("num_heads", "eps"):  # no shape tells these
            if getattr(stated, key) != getattr(arch, key):
                raise ValueError(
                    f"{path}: config.json says {key}={getattr(stated, key)}, and {asked}"
                    f"{'=' if name else ''}{name} means {getattr(arch, key)}: it is the checkpoint "
                    f"of another model; set {asked} or {field} to one that fits"
                )
    return weights


def check_transformer(
    reference: str, part: str, arch: WanArch, name: str = "", field: str = "model.checkpoint"
) -> Weights:
    """ValueError unless the files are there, whole, and have just this model's tensors.

    Reads headers only, so that a render can refuse before it loads anything.
    """
    weights = open_transformer(locate(reference, part, field), arch, name, field)
    with torch.device("meta"):
        whole = WanDiT(arch)
    check_module(whole, weights)
    return weights


def _find(folder: Path, part: str) -> Path | None:
    for place in _PLACES[part]:
        for path in sorted(folder.glob(place)):
            if path.is_file() or any(path.iterdir()):
                return path
    return _find_in_root(folder) if part == "transformer" else None


def _find_in_root(folder: Path) -> Path | None:
    """The folder itself when DiT weights lie in it; the file when it is the only .pth of a DiT."""
    if any(file.suffix in SAFETENSORS for file in folder.iterdir()):
        return folder
    files = [
        file
        for file in folder.iterdir()
        if file.suffix in TORCH and not _OTHER_PARTS.search(file.name)
    ]
    if len(files) == 1:
        return files[0]
    return folder if files else None


def _patterns(part: str) -> list[str]:
    """What to fetch for a part; a name without a dot or star is a folder."""
    places = [place if re.search(r"[.*]\w*$", place) else f"{place}/*" for place in _PLACES[part]]
    return places + list(_ROOT_FILES if part == "transformer" else ())


def _download(reference: str, repo: str, inner: str | None, part: str, field: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = _patterns(part)
    if inner is not None:
        patterns = [inner, *(f"{inner}/{pattern}" for pattern in patterns)]
    fetching.set()
    try:
        folder = Path(snapshot_download(repo, allow_patterns=patterns))
    except Exception as error:  # the hub's, the network's and the disk's errors share no base
        raise ValueError(
            f"{field}={reference}: its {part} is not in the local cache and could not be "
            f"downloaded ({first_line(error)}), so the model cannot be loaded; "
            f"{_how(repo, patterns, field)}"
        ) from error
    finally:
        fetching.clear()
    path = folder if inner is None else folder / inner
    if not path.exists() or (path.is_dir() and _find(path, part) is None):
        raise ValueError(
            f"{field}={reference} has no {part} that we know (looked for {', '.join(patterns)}) in "
            f"what is downloaded of it, so the model cannot be loaded; if it is there, "
            f"{_how(repo, patterns, field)}"
        )
    return path


def _how(repo: str, patterns: list[str], field: str) -> str:
    includes = " ".join(f'--include "{pattern}"' for pattern in patterns)
    return f"run `hf download {repo} {includes}` on a network, or set {field} to a local folder"
