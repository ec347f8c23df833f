"""The tensors of a checkpoint under our names, and copying them into a module, one at a time."""

import ctypes
import json
import math
import mmap
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from .tensor_files import SAFETENSORS, TORCH, TensorFile, open_tensor_file

_CHUNK_BYTES = 2**20  # of a file that are in memory at once while it is copied
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True, kw_only=True)
class View:
    """A tensor of ours within one of a file's, where a name alone does not say which."""

    name: str
    part: int = 0  # which of `parts` equal runs of rows
    parts: int = 1
    drop: int = 0  # leading axes of size one that ours has not

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Ours, from the file's; a shape that this view does not fit stays as it is."""
        if math.prod(shape[: self.drop]) != 1 or self.drop > len(shape):
            return shape
        rest = shape[self.drop :]
        if self.parts == 1 or not rest or rest[0] % self.parts:
            return rest
        return (rest[0] // self.parts, *rest[1:])

    def of(self, tensor: Tensor) -> Tensor:
        shape = self.shape(tuple(tensor.shape))
        count = math.prod(shape)
        if count == tensor.numel():
            return tensor.reshape(shape)
        return tensor.reshape(self.parts, *shape)[self.part]


# a tensor's name in a file to its name here, or to the views of it that have names; none: left out
Rename = Callable[[str], str | Sequence[View]]


class Weights:
    """The tensors of one file or of a sharded set, under our names; nothing is read until asked.

    Opening checks every file for truncation and lists the shapes, from headers only. `field`: the
    user's, whose value led to them.
    """

    def __init__(
        self, path: Path, rename: Rename | None = None, field: str = "model.checkpoint"
    ) -> None:
        self.path, self.field = path, field
        self.shapes: Mapping[str, tuple[int, ...]]
        shapes: dict[str, tuple[int, ...]] = {}
        self._sources: dict[str, tuple[TensorFile, str, View]] = {}
        for file in (open_tensor_file(file, field) for file in weight_files(path, field)):
            for source, shape in file.shapes.items():
                renamed = source if rename is None else rename(source)
                views = [View(name=renamed)] if isinstance(renamed, str) else renamed
                for view in views:
                    if view.name in shapes:
                        raise ValueError(
                            f"{path} has {view.name} twice ({source} in {file.path.name} and "
                            f"{self._sources[view.name][1]}): which one is meant cannot be told; "
                            f"point at one file or at a folder that holds one set"
                        )
                    shapes[view.name] = view.shape(shape)
                    self._sources[view.name] = file, source, view
        self.shapes = shapes

    def read(self, name: str) -> Tensor:
        """A memory-mapped CPU tensor: the file's own pages, never to be written to."""
        file, source, view = self._sources[name]
        return view.of(file.read(source))

    def copy(self, name: str, into: Tensor) -> None:
        """Fill a tensor of any device and type, keeping about a MB of the file in memory."""
        source = self.read(name)
        if not source.is_contiguous():
            into.copy_(source)
            storage = source.untyped_storage()
            _release(storage.data_ptr(), storage.nbytes())
            return
        flat, target = source.view(-1), into.view(-1)
        step = _CHUNK_BYTES // flat.element_size()
        for start in range(0, len(flat), step):
            part = flat[start : start + step]
            target[start : start + step].copy_(part)
            _release(part.data_ptr(), part.nbytes)


class Tensors(Protocol):
    """What a module is filled from."""

    path: Path
    field: str  # the user's, for what is said of them
    shapes: Mapping[str, tuple[int, ...]]

    def copy(self, name: str, into: Tensor) -> None: ...


def load_module(
    module: nn.Module,
    weights: Tensors,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    keep_float32: Callable[[str], bool] = lambda name: False,
    only: Callable[[str], bool] | None = None,
) -> None:
    """Fill every parameter and persistent buffer of a module that was built on the meta device.

    Tensors go to the device one by one; what the file has besides them is judged by `check_module`.
    Buffers that are not persistent are not in files: they stay as the module made them.
    """
    check_module(module, weights, only=only)
    for old, names in _tied(module):
        known = next(name for name in names if name in weights.shapes)
        wanted = torch.float32 if keep_float32(known) else dtype
        new = torch.empty(
            old.shape, dtype=wanted if old.is_floating_point() else old.dtype, device=device
        )
        weights.copy(known, new)
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        for name in names:
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, new)


def check_module(
    module: nn.Module, weights: Tensors, *, only: Callable[[str], bool] | None = None
) -> None:
    """ValueError unless the file has each tensor of the module, in its shape, and no unknown one.

    `only` says which of the file's tensors the module answers for. A module that keys layers of its
    own by number (a ModuleDict) and lacks some of the file's is a slice: those layers are not
    unknown, nor are top-level parts that it has not, such as the head.
    """
    owned: dict[str, tuple[int, ...]] = {}
    missing = []
    for tensor, names in _tied(module):
        owned.update(dict.fromkeys(names, tuple(tensor.shape)))
        if not any(name in weights.shapes for name in names):
            missing.append(names[0])
    misshapen = [
        f"{name} is {weights.shapes[name]} in the file and {shape} in the model"
        for name, shape in owned.items()
        if weights.shapes.get(name, shape) != shape
    ]
    unknown = _unknown(module, set(owned), weights.shapes)
    if only is not None:
        unknown = [name for name in unknown if only(name)]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for names, what in (
            (missing, "missing"),
            (unknown, "unknown"),
            (misshapen, "of another shape"),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"{weights.path} does not fit the model: of its tensors, {'; '.join(problems)}. It is "
            f"probably the checkpoint of another model; set {arch_field(weights.field)} to what it "
            f"holds, or {weights.field} to the weights of this model"
        )


def arch_field(field: str) -> str:
    """What says of which model the weights should be that `field` names: the one beside it."""
    group = field.rpartition(".")[0]
    return "the sizes in vae" if group == "vae" else f"{group}.arch"


def _unknown(module: nn.Module, owned: set[str], names: Iterable[str]) -> list[str]:
    foreign = [name for name in names if name not in owned]
    keyed = {key for key, child in module.named_children() if isinstance(child, nn.ModuleDict)}
    tops = {name.split(".")[0] for name in owned}

    def elsewhere(name: str) -> bool:
        top, _, rest = name.partition(".")
        index = rest.split(".")[0]
        return top in keyed and index.isdigit() and index not in module.get_submodule(top)  # type: ignore[operator]

    if not any(map(elsewhere, foreign)):
        return foreign
    return [name for name in foreign if not elsewhere(name) and name.split(".")[0] in tops]


def _tied(module: nn.Module) -> list[tuple[Tensor, list[str]]]:
    """Each parameter and persistent buffer once, with all the names it goes by."""
    state: dict[str, Tensor] = module.state_dict(keep_vars=True)
    names: dict[int, list[str]] = defaultdict(list)
    for name, tensor in state.items():
        names[id(tensor)].append(name)
    return [(state[alike[0]], alike) for alike in names.values()]


def weight_files(path: Path, field: str = "model.checkpoint") -> list[Path]:
    """The file itself, or those that a folder's index names, or the one set the folder holds."""
    if not path.is_dir():
        return [path]
    indexes = sorted(path.glob("*.safetensors.index.json")) or sorted(path.glob("*.bin.index.json"))
    files = [file for suffix in SAFETENSORS for file in sorted(path.glob(f"*{suffix}"))]
    files = files or [file for suffix in TORCH for file in sorted(path.glob(f"*{suffix}"))]
    if len(indexes) == 1:
        try:
            named = {
                str(shard) for shard in json.loads(indexes[0].read_text())["weight_map"].values()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{indexes[0]} is corrupt; download it again") from error
        return _complete(indexes[0].name, [path / name for name in sorted(named)])
    if not files:
        raise ValueError(
            f"{path} holds no weights (*.safetensors, *.pth, *.pt, *.bin); set {field} to a folder "
            f"that does"
        )
    numbered = [re.fullmatch(r"(.+)-\d+-of-(\d+)(\.\w+)", file.name) for file in files]
    sets = {match.groups() for match in numbered if match}
    if len(sets) == 1 and all(numbered):
        ((stem, count, suffix),) = sets
        width = len(count)
        shards = [f"{stem}-{i:0{width}}-of-{count}{suffix}" for i in range(1, int(count) + 1)]
        return _complete("the name of a shard", [path / name for name in shards])
    if len(files) > 1:
        listed = ", ".join(file.name for file in files[:5])
        elsewhere = (
            "model.transformer to the one that is"
            if field.startswith("model.")
            else f"{field} to a folder of one set"
        )
        raise ValueError(
            f"{path} holds {len(files)} files of weights ({listed}) and no index that says which "
            f"belong together; take out those that are not meant, or set {elsewhere}"
        )
    return files


def _complete(source: str, shards: list[Path]) -> list[Path]:
    lost = [shard.name for shard in shards if not shard.is_file()]
    if lost:
        raise ValueError(
            f"{shards[0].parent} lacks {len(lost)} of the {len(shards)} files that {source} "
            f"promises ({', '.join(lost[:3])}): the download is incomplete; run it again"
        )
    return shards


def _release(address: int, num_bytes: int) -> None:
    """Give up pages of a mapped file, or they would count as ours beside the copy; they reload."""
    page = mmap.PAGESIZE
    start = -(-address // page) * page
    length = (address + num_bytes) // page * page - start
    if length > 0:
        _LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
