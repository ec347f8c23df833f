"""What a causal VAE remembers between two latents: the caches of its convolutions.

diffusers hands each causal convolution its entry of a list and puts the next one in its place: the
last two frames that went in, "Rep" once for an upsampling in time that has seen only the first
latent, and None before there is anything.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from .vae_cpu import FastOnCpu
from .vae_tiles import Tiling

Entry = Tensor | str | None
_NONE, _REPEAT, _TENSOR = range(3)


@dataclass(frozen=True)
class StreamState:
    """A stream between two calls. Safe to keep: caches are replaced, never written into."""

    caches: tuple[tuple[Entry, ...], ...]  # a row per tile, an entry per convolution
    seen: int  # latents so far
    shape: tuple[int, ...]  # (batch, channels, height, width) of what goes in; empty: nothing yet

    def to_tensors(self) -> dict[str, Tensor]:
        """As named contiguous tensors, which is what a safetensors file takes."""
        kinds = [[_kind(entry) for entry in row] for row in self.caches]
        tensors = {
            "seen": torch.tensor(self.seen),
            "shape": torch.tensor(self.shape, dtype=torch.int64),
            "kinds": torch.tensor(kinds, dtype=torch.uint8),
        }
        for tile, row in enumerate(self.caches):
            for conv, entry in enumerate(row):
                if isinstance(entry, Tensor):
                    tensors[f"tile{tile}.conv{conv}"] = entry.contiguous()
        return tensors

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        """What `to_tensors` took apart."""
        missing = [name for name in ("seen", "shape", "kinds") if name not in tensors]
        rows: list[tuple[Entry, ...]] = []
        for tile, kinds in enumerate([] if missing else tensors["kinds"].tolist()):
            row: list[Entry] = []
            for conv, kind in enumerate(kinds):
                name = f"tile{tile}.conv{conv}"
                if kind == _TENSOR and name not in tensors:
                    missing.append(name)
                row.append({_NONE: None, _REPEAT: "Rep"}.get(kind, tensors.get(name)))
            rows.append(tuple(row))
        if missing:
            raise ValueError(
                f"a saved VAE state lacks {', '.join(missing[:3])}: the stream cannot go on where "
                "it stopped; start it again from its first latent"
            )
        shape = tuple(tensors["shape"].tolist())
        return cls(caches=tuple(rows), seen=int(tensors["seen"]), shape=shape)


class DecoderState(StreamState):
    """Of a StreamingDecoder; its own type, so that no encoder is handed it."""

    def cut(self, tiling: Tiling) -> "DecoderState":
        """Of a decoder of whole frames: as one of tiles goes on from it."""
        height, width = self.shape[2:]
        (row,) = self.caches
        places = [place for row in tiling.spans(height, width) for place in row]
        caches = tuple(tuple(_crop(entry, height, *place) for entry in row) for place in places)
        return DecoderState(caches=caches, seen=self.seen, shape=self.shape)


class EncoderState(StreamState):
    """Of a StreamingEncoder."""


def _crop(entry: Entry, height: int, rows: slice, columns: slice) -> Entry:
    """The part of a cache that belongs to these latents: convolutions run at multiples of them."""
    if not isinstance(entry, Tensor):
        return entry
    scale = entry.shape[-2] // height
    return entry[
        ...,
        rows.start * scale : rows.stop * scale,
        columns.start * scale : columns.stop * scale,
    ].contiguous()


def _kind(entry: Entry) -> int:
    if entry is None:
        return _NONE
    return _TENSOR if isinstance(entry, Tensor) else _REPEAT


class Stream:
    """The live caches of one stream through one half of a VAE."""

    def __init__(self, network: nn.Module) -> None:
        # every causal convolution is counted, also those of one frame that never use their entry
        self._num_convs = sum(isinstance(module, nn.Conv3d) for module in network.modules())
        self._caches: list[list[Entry]] = []
        self._shape: tuple[int, ...] = ()
        self.seen = 0

    def admit(self, what: str, x_BCTHW: Tensor) -> None:
        """Refuse what does not continue the stream, before any cache changes."""
        batch, channels, _, height, width = x_BCTHW.shape
        if 0 in x_BCTHW.shape:
            raise ValueError(f"{what} of shape {tuple(x_BCTHW.shape)} are empty: pass at least one")
        shape = (batch, channels, height, width)
        if self._shape and shape != self._shape:
            raise ValueError(
                f"{what} of batch, channels, height, width {shape} do not continue a stream of "
                f"{self._shape}; call reset() to begin another video, or use an object per video"
            )
        self._shape = shape

    def map(self, tiles: Sequence[Tensor], run: Callable[..., Tensor]) -> list[Tensor]:
        """One latent's tiles through `run(tile, cache)`, each with the cache of its place."""
        num_tiles = len(tiles)
        if not self._caches:
            self._caches = [[None] * self._num_convs for _ in range(num_tiles)]
        if len(self._caches) != num_tiles:
            raise ValueError(
                f"the restored VAE state holds {len(self._caches)} tiles, these frames have "
                f"{num_tiles}; set model.vae_tile to what it was when the state was saved"
            )
        with FastOnCpu():
            results = [run(*pair) for pair in zip(tiles, self._caches, strict=True)]
        self.seen += 1
        return results

    def freeze(self) -> tuple[tuple[tuple[Entry, ...], ...], int, tuple[int, ...]]:
        """The fields of a StreamState. No copies: a cache is replaced, never written into."""
        return tuple(tuple(row) for row in self._caches), self.seen, self._shape

    def restore(self, state: StreamState, device: torch.device, dtype: torch.dtype) -> None:
        """Go on from `state`, whose own tuples stay as they are."""
        for row in state.caches:
            dtypes = {entry.dtype for entry in row if isinstance(entry, Tensor)}
            if len(row) != self._num_convs or not dtypes <= {dtype}:
                raise ValueError(
                    f"the VAE state holds {len(row)} caches of {sorted(map(str, dtypes))}, this "
                    f"VAE has {self._num_convs} in {dtype}; restore it with the model and the "
                    "model.vae_dtype it was saved with"
                )
        self._caches = [
            [entry.to(device) if isinstance(entry, Tensor) else entry for entry in row]
            for row in state.caches
        ]
        self._shape, self.seen = state.shape, state.seen
