"""Low-rank adapters: sums that are added to a transformer's weights while these are loaded.

Names are those of diffusers and peft, of Wan's own layout as most trainers write it, or of kohya's
tools, with underscores for dots.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import locate
from .names import original_module, rename_transformer
from .tensor_files import TensorFile, open_tensor_file
from .weights import Weights

# the end of a name: which part of a sum it is, and of which of the module's parameters
_ENDS = {
    ".lora_A.weight": ("down", "weight"),
    ".lora_A.default.weight": ("down", "weight"),
    ".lora_down.weight": ("down", "weight"),
    ".lora_B.weight": ("up", "weight"),
    ".lora_B.default.weight": ("up", "weight"),
    ".lora_up.weight": ("up", "weight"),
    ".alpha": ("alpha", "weight"),
    ".diff": ("whole", "weight"),
    ".diff_b": ("whole", "bias"),
    ".lora_B.bias": ("offset", "bias"),
    ".diff_m": ("whole", "modulation"),
}
_PREFIXES = ("base_model.model.", "transformer.")  # besides those of whole transformers
_FLAT = "lora_unet_"  # kohya's


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter's file, and how much of it is added."""

    path: Path
    scale: float


class Adapted:
    """The tensors of a transformer, with those of its adapters added. ValueError: another model's.

    As `Weights` to whoever loads a module; opening reads headers only.
    """

    def __init__(self, weights: Weights, adapters: Sequence[Adapter]) -> None:
        self.path, self.field, self.shapes = weights.path, weights.field, weights.shapes
        self._weights = weights
        self._sums: defaultdict[str, list[_Sum]] = defaultdict(list)
        for adapter in adapters:
            for name, parts in _open(adapter, weights.shapes).items():
                self._sums[name].append(parts)

    def copy(self, name: str, into: Tensor) -> None:
        """Fill a tensor of any device and type; sums are made there, in float32."""
        if name not in self._sums:
            return self._weights.copy(name, into)
        total = torch.empty(into.shape, dtype=torch.float32, device=into.device)
        self._weights.copy(name, total)
        for parts in self._sums[name]:
            total += parts.sum(total.shape, total.device)
        into.copy_(total)


def split_adapters(setting: str) -> list[tuple[str, str]]:
    """Of a field's value, `REFERENCE` or `REFERENCE@SCALE`, several with commas between them: the
    references, each with its `@SCALE`, if it has one."""
    found = []
    for entry in filter(None, map(str.strip, setting.split(","))):
        scale = re.search(r"@[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$", entry)
        found.append((entry[: scale.start()], scale[0]) if scale else (entry, ""))
    return found


def find_adapters(setting: str, field: str) -> list[Adapter]:
    return [
        Adapter(path=locate(reference, "lora", field), scale=float(scale[1:] or 1))
        for reference, scale in split_adapters(setting)
    ]


@dataclass(frozen=True, kw_only=True)
class _Sum:
    """What one adapter adds to one parameter: `up` times `down` or, of a bias, the `offset` behind
    them, a whole tensor, or both."""

    file: TensorFile
    parts: Mapping[str, str]  # names in the file, by part
    scale: float
    alpha: float | None  # that the file states for all; of its own each has it in `parts`

    def sum(self, shape: Sequence[int], device: torch.device) -> Tensor:
        def read(part: str) -> Tensor:
            return self.file.read(self.parts[part]).to(device, torch.float32)

        total = torch.zeros(*shape, device=device)
        if "down" in self.parts:
            down = read("down").flatten(1)
            alpha = float(read("alpha")) if "alpha" in self.parts else self.alpha
            weight = self.scale * (1.0 if alpha is None else alpha / len(down))
            low = read("offset") if "offset" in self.parts else read("up").flatten(1) @ down
            total += weight * low.view(*shape)
        if "whole" in self.parts:
            total += self.scale * read("whole").view(*shape)
        return total


def _open(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, _Sum]:
    """By the name of the parameter that each is added to; `shapes` are the transformer's."""
    path, file = adapter.path, open_tensor_file(adapter.path)
    parts = _parts(path, file, shapes)
    _check_parts(path, file, parts, shapes)
    alpha = _stated_alpha(path, file)
    return {
        name: _Sum(file=file, parts=names, scale=adapter.scale, alpha=alpha)
        for name, names in parts.items()
    }


def _parts(
    path: Path, file: TensorFile, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, dict[str, str]]:
    """Names in the file, by parameter and part of its sum."""
    flat = {
        spelt.replace(".", "_"): module
        for module in {name.rpartition(".")[0] for name in shapes}
        for spelt in (module, original_module(module))
    }
    parts: defaultdict[str, dict[str, str]] = defaultdict(dict)
    unknown, foreign = [], []
    for name in file.shapes:
        end = next((end for end in _ENDS if name.endswith(end)), None)
        if end is None:
            unknown.append(name)
            continue
        part, leaf = _ENDS[end]
        target = _target(name.removesuffix(end), leaf, flat)
        if target in shapes:
            parts[target][part] = name
        else:
            foreign.append(name)
    _refuse(path, "no low-rank sum, so it is an adapter of another kind", unknown)
    _refuse(path, "for modules that this transformer has not: another model's", foreign)
    for name, names in parts.items():
        if "offset" in names:  # is weighed as the rest of its sum
            of = parts.get(f"{name.removesuffix('bias')}weight", {})
            names |= {part: of[part] for part in ("down", "alpha") if part in of}
    return parts


def _check_parts(
    path: Path,
    file: TensorFile,
    parts: Mapping[str, Mapping[str, str]],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """ValueError unless every sum is whole, and of the shape that it is added to."""
    halves = [
        names.get("down") or names.get("up") or names.get("offset") or names["alpha"]
        for names in parts.values()
        if ("down" in names) != ("up" in names or "offset" in names) or set(names) == {"alpha"}
    ]
    _refuse(path, "without the other half of their sum: the file is incomplete", halves)
    misfits = [
        f"{name} of {_shape(file, names)} for {tuple(shapes[name])}"
        for name, names in parts.items()
        if not _fits(file, names, shapes[name])
    ]
    _refuse(path, "of another shape than what they are added to: another model's", misfits)


def _target(module: str, leaf: str, flat: Mapping[str, str]) -> str:
    """Our parameter's name."""
    if module.startswith(_FLAT):
        return f"{flat.get(module.removeprefix(_FLAT), module)}.{leaf}"
    for prefix in _PREFIXES:
        module = module.removeprefix(prefix)
    renamed = rename_transformer(f"{module}.{leaf}" if module else leaf)
    return renamed if isinstance(renamed, str) else ""


def _shape(file: TensorFile, names: Mapping[str, str]) -> str:
    return " and ".join(str(file.shapes[name]) for part, name in names.items() if part != "alpha")


def _fits(file: TensorFile, names: Mapping[str, str], shape: tuple[int, ...]) -> bool:
    def flat(part: str) -> tuple[int, int]:
        rows, *rest = file.shapes[names[part]]
        return rows, math.prod(rest)

    for part in ("whole", "offset"):
        if part in names and math.prod(file.shapes[names[part]]) != math.prod(shape):
            return False
    if "up" not in names:
        return True
    (out, rank), (rows, inside) = flat("up"), flat("down")
    return rank == rows and (out, inside) == (shape[0], math.prod(shape[1:]))


def _stated_alpha(path: Path, file: TensorFile) -> float | None:
    """As peft writes it beside an adapter, and diffusers into its file."""
    text, beside = file.metadata.get("lora_adapter_metadata"), path.parent / "adapter_config.json"
    try:
        if text is None and path.name == "adapter_model.safetensors" and beside.is_file():
            text = beside.read_text()
        entries = json.loads(text or "{}").items()
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: what is stated of it is corrupt; download it again") from error
    stated = {key.removeprefix("transformer."): value for key, value in entries}
    unlike = [key for key in ("alpha_pattern", "use_dora", "use_rslora") if stated.get(key)]
    if unlike:
        raise ValueError(
            f"{path} was trained with {', '.join(unlike)}, which is not read here, so its sums "
            "would have another weight; merge it into the transformer and set model.transformer"
        )
    alpha = stated.get("lora_alpha")
    return None if alpha is None else float(alpha)


def _refuse(path: Path, what: str, names: Sequence[str]) -> None:
    if names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise ValueError(
            f"{path}: {len(names)} of its tensors are {what} ({shown}), and nothing of it is "
            "added; leave the adapter out, or give it the model that it was trained on"
        )
