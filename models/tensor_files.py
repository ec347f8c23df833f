"""One file of tensors: what it holds, from its header alone, and its tensors, memory-mapped.

Everything that can be wrong with a file without reading its tensors is found when it is opened.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

SAFETENSORS = (".safetensors",)
TORCH = (".pth", ".pt", ".bin", ".ckpt")

# wrappers round a state dict, in order of preference; generator*: CausVid, Self-Forcing, LongLive
_NESTED = ("generator_ema", "generator", "generator_lora", "state_dict", "model")
_MAX_HEADER_BYTES = 100_000_000  # the limit that the safetensors format sets itself


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """A checked file. Tensors that `read` gives are the file's own pages: never write to them."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)  # text in a safetensors file


def open_tensor_file(path: Path) -> TensorFile:
    """Check the file and list its tensors. ValueError: absent, truncated or not a tensor file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; set model.checkpoint to where the weights are")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(1024)
    if head.startswith(b"version https://git-lfs"):
        announced = re.search(rb"size (\d+)", head)
        expected = f"{int(announced[1])} bytes" if announced else "the weights"
        raise ValueError(
            f"{path} is a git-lfs pointer of {size} bytes instead of {expected}: the repository "
            f"was cloned without its large files; run `git lfs pull` there or download the file"
        )
    if path.suffix in SAFETENSORS:
        return _open_safetensors(path, size)
    if path.suffix in TORCH:
        return _open_torch(path, size, head)
    known = ", ".join(SAFETENSORS + TORCH)
    raise ValueError(f"{path} is not a file of weights: its name ends in none of {known}")


def _truncated(path: Path, expected: str, found: int) -> ValueError:
    return ValueError(
        f"{path} is truncated: expected {expected}, found {found} bytes, so some tensors are "
        f"missing; download it again"
    )


def _open_safetensors(path: Path, size: int) -> TensorFile:
    from safetensors import SafetensorError, safe_open

    if size < 8:
        raise _truncated(path, "at least 8 bytes", size)
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > _MAX_HEADER_BYTES:
            raise ValueError(
                f"{path} is not a safetensors file: it would start with {header_bytes} bytes of "
                f"header in {size} bytes; download it again"
            )
        if size < 8 + header_bytes:
            raise _truncated(path, f"at least {8 + header_bytes} bytes (its header)", size)
        raw = file.read(header_bytes)
    try:
        header = json.loads(raw)
        metadata = header.pop("__metadata__", {})
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is corrupt: unreadable header; download it again") from error
    if size < 8 + header_bytes + end:
        raise _truncated(path, f"{8 + header_bytes + end} bytes", size)
    try:
        tensors = safe_open(path, "pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is corrupt: {error}; download it again") from error
    return TensorFile(path=path, shapes=shapes, read=tensors.get_tensor, metadata=metadata)


def _open_torch(path: Path, size: int, head: bytes) -> TensorFile:
    if size == 0:
        raise _truncated(path, "a zip archive", size)
    if not head.startswith(b"PK\x03\x04"):
        raise ValueError(
            f"{path} is not a zip archive as torch.save writes: corrupt, or saved before PyTorch "
            f"1.6; download it again, or load and save it with a recent PyTorch"
        )
    if not zipfile.is_zipfile(path):  # its directory is at the end, so a cut file has none
        raise _truncated(path, "a zip archive with its directory at the end", size)
    try:
        with zipfile.ZipFile(path) as archive:
            compressed = any(entry.compress_type for entry in archive.infolist())
        if compressed:
            raise ValueError(f"{path} is compressed; unpack it and save it with torch.save")
        content = torch.load(str(path), map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds Python objects besides tensors, which could run code when loaded; "
            f"save its state_dict alone"
        ) from error
    except (zipfile.BadZipFile, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is corrupt ({size} bytes); download it again") from error
    tensors = _state_dict(path, content)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return TensorFile(path=path, shapes=shapes, read=tensors.__getitem__)


def _state_dict(path: Path, content: object) -> dict[str, Tensor]:
    """The tensors, out of the wrappers that training programs put round them."""
    while isinstance(content, dict):
        inner = next((key for key in _NESTED if isinstance(content.get(key), dict)), None)
        if inner is None:
            tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
            if tensors:
                return tensors
            break
        content = content[inner]
    held = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content)
    raise ValueError(
        f"{path} holds no tensors under a name we know (has: {held}; looked for: "
        f"{', '.join(_NESTED)}); save the model's state_dict alone"
    )
