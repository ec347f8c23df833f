"""Keys and values that a stage keeps for its layers, by block, version and pass.

B batch, L tokens, D width.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .snapshot import CacheKey
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

    def held(self, first_pass: int = 0) -> dict[CacheKey, tuple[Tensor, Tensor]]:
        """All of it, its passes counted from `first_pass`; nothing of it is written into later."""
        return {
            (*key[:3], key[3] + first_pass, layer): pair
            for key, layers in self._layers.items()
            for layer, pair in layers.items()
        }

    def restore(
        self,
        entries: Iterable[Entry],
        held: Mapping[CacheKey, tuple[Tensor, Tensor]],
        layers: range,
        passes: range,
    ) -> None:
        """What `held` gave, of these layers and passes; the first of them is pass 0 here."""
        spans = {entry.key: entry for entry in entries}
        self._layers, self._spans = {}, {}
        for (*key, passing, layer), (k_BLD, v_BLD) in held.items():
            block, step, take = key
            if layer in layers and passing in passes:
                entry = spans[block, step, take]
                self.put(entry, passing - passes.start, layer, k_BLD, v_BLD)

    def put(self, entry: Entry, passing: int, layer: int, k_BLD: Tensor, v_BLD: Tensor) -> None:
        key = (*entry.key, passing)
        self._spans[key] = entry
        self._layers.setdefault(key, {})[layer] = k_BLD, v_BLD

    def get(self, entry: Entry, passing: int, layer: int) -> tuple[Tensor, Tensor]:
        """The slice of a held entry that `entry` names."""
        key = (*entry.key, passing)
        assert key in self._layers, f"{entry} is read and not held"
        held = self._spans[key]
        assert held.start <= entry.start, f"{entry} is read out of {held}"
        assert entry.stop <= held.stop, f"{entry} is read out of {held}"
        k_BLD, v_BLD = self._layers[key][layer]
        tokens = k_BLD.shape[1] // held.num_latents
        run = slice((entry.start - held.start) * tokens, (entry.stop - held.start) * tokens)
        return k_BLD[:, run], v_BLD[:, run]


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
        k_BLD, v_BLD = (torch.cat(tensors, dim=1) for tensors in zip(*pairs, strict=True))
        return k_BLD, v_BLD

    def write(self, layer: int, k_BLD: Tensor, v_BLD: Tensor) -> None:
        latents = [i for part in self._task.parts for i in range(part.start, part.stop)]
        tokens = k_BLD.shape[1] // len(latents)
        for entry in self._task.stores:
            first = latents.index(entry.start)
            run = slice(first * tokens, (first + entry.num_latents) * tokens)
            # a copy: a slice would hold the whole window's
            self._cache.put(
                entry, self._passing, layer, k_BLD[:, run].clone(), v_BLD[:, run].clone()
            )
