"""One file of tensors: what it holds, from its header alone, and its tensors, memory-mapped.

Everything that can be wrong with a file without reading its tensors is found when it is opened.
"""

import json
import math
import mmap
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..configs.errors import first_line, is_memory

SAFETENSORS = (".safetensors",)
TORCH = (".pth", ".pt", ".bin", ".ckpt")

# wrappers round a state dict, in order of preference. generator*: CausVid, Self-Forcing, LongLive.
# Of those only Self-Forcing publishes an average, and renders with it (--use_ema in its README, and
# always in its demo); a file of weights as they were last, or of an average alone, has one of both.
_NESTED = ("generator_ema", "generator", "generator_lora", "state_dict", "model")
_MAX_HEADER_BYTES = 100_000_000  # the limit that the safetensors format sets itself
_DTYPES = {
    "BOOL": torch.bool,
    **{"U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64},
    **{"I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64},
    **{"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0  # mmap.MAP_NORESERVE, from Python 3.13 on


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """A checked file. Tensors that `read` gives are the file's own pages: never write to them."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)  # text in a safetensors file


def open_tensor_file(path: Path, field: str = "model.checkpoint") -> TensorFile:
    """Check the file and list its tensors. ValueError: absent, truncated or not a tensor file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; set {field} to where the weights are")
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
    """By hand: safetensors' own reader asks the system for all of the file's bytes as memory, so
    that a machine could open none that is larger than its own, though a slice of it would fit."""
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
        places = {name: _Place.of(entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is corrupt: unreadable header ({first_line(error)}); download it again"
        ) from error
    start = 8 + header_bytes
    end = start + max((place.stop for place in places.values()), default=0)
    if size < end:
        raise _truncated(path, f"{end} bytes", size)
    if size > end:
        raise ValueError(f"{path} is corrupt: {size - end} bytes too long; download it again")
    mapped = _map(path, size)
    return TensorFile(
        path=path,
        shapes={name: place.shape for name, place in places.items()},
        read=lambda name: places[name].read(mapped, start),
        metadata=metadata,
    )


@dataclass(frozen=True)
class _Place:
    """Of one tensor behind the header of a safetensors file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    first: int
    stop: int

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "_Place":
        """From the header. KeyError: of a type that is not known; ValueError: of another length."""
        dtype, shape = _DTYPES[entry["dtype"]], tuple(map(int, entry["shape"]))
        first, stop = entry["data_offsets"]
        if min((first, *shape)) < 0 or stop - first != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{entry} does not add up")
        return cls(dtype, shape, first, stop)

    def read(self, mapped: mmap.mmap, start: int) -> Tensor:
        count = math.prod(self.shape)
        if not count:
            return torch.empty(self.shape, dtype=self.dtype)
        at = start + self.first
        return torch.frombuffer(mapped, dtype=self.dtype, count=count, offset=at).view(self.shape)


def _map(path: Path, size: int) -> mmap.mmap:
    """Its pages, private because torch takes none that are read-only, and without a reserve, as
    nobody writes to them."""
    flags, access = mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), size, flags=flags, prot=access)
    except OSError as error:
        raise _too_large(path, size, error) from error


def _too_large(path: Path, size: int, error: Exception) -> ValueError:
    return ValueError(
        f"{path} of {size} bytes cannot be mapped ({first_line(error)}), so nothing of it can be "
        f"read here; use it as safetensors, in smaller files, or on a machine with more memory"
    )


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
        if is_memory(error):
            raise _too_large(path, size, error) from error
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
