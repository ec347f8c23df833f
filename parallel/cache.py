"""Keys and values that a stage keeps for its layers, by block, version and pass.

B batch, L tokens, H heads, D channels of a head.
"""

import torch
from torch import Tensor

from .tasks import Entry, Task

_Key = tuple[int, int, int, int]  # an entry's, and the pass through the model


class KeyValueCache:
    """What windows leave behind for later windows. Keys are normalised and not rotated."""

    def __init__(self) -> None:
        self._layers: dict[_Key, dict[int, tuple[Tensor, Tensor]]] = {}
        self._spans: dict[_Key, Entry] = {}

    def window(self, task: Task, passing: int) -> "WindowCache | None":
        """What one pass of a task reads and leaves; none when it does neither."""
        if not task.reads and not task.stores:
            return None
        return WindowCache(self, task, passing)

    def free(self, task: Task) -> None:
        """Let go of what nobody reads after this task."""
        for freed in task.frees:
            found = [key for key in self._layers if key[:3] == freed]
            assert found, f"(block, step, take) {freed} is freed and not held"
            for key in found:
                del self._layers[key], self._spans[key]

    def num_bytes(self) -> int:
        return sum(
            k.nbytes + v.nbytes for layers in self._layers.values() for k, v in layers.values()
        )

    def put(self, entry: Entry, passing: int, layer: int, k_BLHD: Tensor, v_BLHD: Tensor) -> None:
        key = (*entry.key, passing)
        self._spans[key] = entry
        self._layers.setdefault(key, {})[layer] = k_BLHD, v_BLHD

    def get(self, entry: Entry, passing: int, layer: int) -> tuple[Tensor, Tensor]:
        """The slice of a held entry that `entry` names."""
        key = (*entry.key, passing)
        assert key in self._layers, f"{entry} is read and not held"
        held = self._spans[key]
        assert held.start <= entry.start, f"{entry} is read out of {held}"
        assert entry.stop <= held.stop, f"{entry} is read out of {held}"
        k_BLHD, v_BLHD = self._layers[key][layer]
        tokens = k_BLHD.shape[1] // held.num_latents
        run = slice((entry.start - held.start) * tokens, (entry.stop - held.start) * tokens)
        return k_BLHD[:, run], v_BLHD[:, run]


class WindowCache:
    """The LayerCache of one pass of one task."""

    def __init__(self, cache: KeyValueCache, task: Task, passing: int) -> None:
        self._cache = cache
        self._task = task
        self._passing = passing

    def read(self, layer: int) -> tuple[Tensor, Tensor] | None:
        pairs = [self._cache.get(entry, self._passing, layer) for entry in self._task.reads]
        if not pairs:
            return None
        k_BLHD, v_BLHD = (torch.cat(tensors, dim=1) for tensors in zip(*pairs, strict=True))
        return k_BLHD, v_BLHD

    def write(self, layer: int, k_BLHD: Tensor, v_BLHD: Tensor) -> None:
        latents = [i for part in self._task.parts for i in range(part.start, part.stop)]
        tokens = k_BLHD.shape[1] // len(latents)
        for entry in self._task.stores:
            first = latents.index(entry.start)
            run = slice(first * tokens, (first + entry.num_latents) * tokens)
            # a copy: a slice would hold the whole window's
            self._cache.put(
                entry, self._passing, layer, k_BLHD[:, run].clone(), v_BLHD[:, run].clone()
            )
