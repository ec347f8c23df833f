"""Checkpoints as files: a small one each, and one for the keys and values of every block kept.

Keys and values of a block never change, so they are written once, however many checkpoints name
them. A checkpoint is a safetensors file whose metadata says what else it needs, by digest.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...models.vae_state import DecoderState
from ...parallel.snapshot import CacheKey, Snapshot
from ...parallel.tasks import Entry, Key, WalkState
from ...pipeline.checkpoint import Checkpoint
from .durable import anyone, written_aside
from .ledger import Saved

FORMAT = 1


class CheckpointFolder:
    """Of one render; written by one thread at a time."""

    def __init__(self, folder: Path, may: Callable[[], None] = anyone) -> None:
        """`may` raises if another process writes here by now."""
        self._folder = folder
        self._may = may
        self._pages: dict[Key, tuple[str, str]] = {}  # that are on the disk: file, digest
        self._named: dict[str, set[str]] = {}  # files of pages, by checkpoint

    def save(self, number: int, checkpoint: Checkpoint) -> Saved:
        """On the disk when this returns. OSError: it is not there, and those before it are."""
        self._folder.mkdir(exist_ok=True)
        pages = self._save_pages(checkpoint.chain)
        path = self._folder / f"{number:06d}.safetensors"
        metadata = {
            "format": str(FORMAT),
            "walk": json.dumps(asdict(checkpoint.chain.walk)),
            "steps": json.dumps({b: step for b, (step, _) in checkpoint.chain.latents.items()}),
            "decoded": str(checkpoint.decoded),
            "frames": str(checkpoint.frames),
            "pages": json.dumps(list(pages.values())),
        }
        digest = save_tensors(path, _tensors(checkpoint), metadata, self._may)
        self._named[path.name] = {file for file, _ in pages.values()}
        sizes = [path.stat().st_size, *(self._size(file) for file, _ in pages.values())]
        return Saved(file=path.name, digest=digest, frames=checkpoint.frames, bytes=sum(sizes))

    def load(self, saved: Saved) -> Checkpoint:
        """ValueError: it cannot be used, and why."""
        path = self._folder / saved.file
        metadata, tensors = load_tensors(path, saved.digest)
        if metadata.get("format") != str(FORMAT):
            raise ValueError(f"{path} is of format {metadata.get('format')}, not {FORMAT}")
        caches: dict[CacheKey, tuple[Tensor, Tensor]] = {}
        pages = json.loads(metadata["pages"])
        for file, digest in pages:
            _, page = load_tensors(self._folder / file, digest)
            caches |= _unpack_page(page)
        self._named[saved.file] = {file for file, _ in pages}
        checkpoint = _checkpoint(metadata, tensors, caches)
        for entry, (file, digest) in zip(checkpoint.chain.walk.entries, pages, strict=True):
            self._pages[entry.key] = file, digest
        return checkpoint

    def prune(self, kept: list[Saved]) -> None:
        """Remove those before these, which were saved or loaded here, and the keys and values that
        were theirs alone.

        What this process does not know of may be another's, which has taken over.
        """
        self._named = {saved.file: self._named[saved.file] for saved in kept}
        named = set[str]().union(*self._named.values())
        old = [path for path in self._folder.glob("[0-9]*") if path.name < kept[0].file]
        old += [self._folder / file for file, _ in self._pages.values() if file not in named]
        self._may()
        for path in old:
            path.unlink(missing_ok=True)
        self._pages = {key: page for key, page in self._pages.items() if page[0] in named}

    def clear(self) -> None:
        """None is needed any more."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _save_pages(self, snapshot: Snapshot) -> dict[Key, tuple[str, str]]:
        pages = {}
        for entry in snapshot.walk.entries:
            if entry.key not in self._pages:
                name = f"keys-{entry.block:06d}-{entry.step}-{entry.take}.safetensors"
                tensors = _pack_page(entry, snapshot.caches)
                self._pages[entry.key] = (
                    name,
                    save_tensors(self._folder / name, tensors, {}, self._may),
                )
            pages[entry.key] = self._pages[entry.key]
        return pages

    def _size(self, file: str) -> int:
        return (self._folder / file).stat().st_size


def _tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    chain = checkpoint.chain
    tensors = {f"latents.{block}": kept for block, (_, kept) in chain.latents.items()}
    for block, sample in chain.samples.items():
        tensors |= {f"sample.{block}.{i}": tensor for i, tensor in enumerate(sample)}
    tensors |= {f"clean.{block}": kept for block, kept in checkpoint.clean.items()}
    if checkpoint.decoder:
        state = checkpoint.decoder.to_tensors()
        tensors |= {f"decoder.{name}": tensor for name, tensor in state.items()}
    return tensors


def _checkpoint(
    metadata: dict[str, str],
    tensors: dict[str, Tensor],
    caches: dict[CacheKey, tuple[Tensor, Tensor]],
) -> Checkpoint:
    groups: dict[str, dict[str, Tensor]] = {"latents": {}, "sample": {}, "clean": {}, "decoder": {}}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        groups[group][rest] = tensor
    steps = {int(block): step for block, step in json.loads(metadata["steps"]).items()}
    samples: dict[int, list[Tensor]] = {}
    for name in sorted(groups["sample"], key=lambda name: [*map(int, name.split("."))]):
        samples.setdefault(int(name.partition(".")[0]), []).append(groups["sample"][name])
    chain = Snapshot(
        walk=_walk(json.loads(metadata["walk"])),
        latents={b: (steps[b], groups["latents"][str(b)]) for b in steps},
        samples={block: tuple(sample) for block, sample in samples.items()},
        caches=caches,
    )
    return Checkpoint(
        chain=chain,
        decoder=DecoderState.from_tensors(groups["decoder"]) if groups["decoder"] else None,
        decoded=int(metadata["decoded"]),
        frames=int(metadata["frames"]),
        clean={int(block): kept for block, kept in groups["clean"].items()},
    )


def _walk(values: dict[str, Any]) -> WalkState:
    return WalkState(
        **{
            **values,
            "in_flight": tuple((block, steps) for block, steps in values["in_flight"]),
            "kept": tuple(values["kept"]),
            "entries": tuple(Entry(**entry) for entry in values["entries"]),
        }
    )


def _pack_page(entry: Entry, caches: dict[CacheKey, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {
        f"{'.'.join(map(str, key))}.{name}": tensor
        for key, pair in caches.items()
        if key[:3] == entry.key
        for name, tensor in zip("kv", pair, strict=True)
    }


def _unpack_page(page: dict[str, Tensor]) -> dict[CacheKey, tuple[Tensor, Tensor]]:
    caches = {}
    for name in page:
        key, _, which = name.rpartition(".")
        if which == "k":
            block, step, take, passing, layer = map(int, key.split("."))
            caches[block, step, take, passing, layer] = page[name], page[f"{key}.v"]
    return caches


def save_tensors(
    path: Path,
    tensors: dict[str, Tensor],
    metadata: dict[str, str],
    may: Callable[[], None],
) -> str:
    """The digest of the file, which is on the disk; `may` as for `written_aside`."""
    with written_aside(path, may) as part, _told_by_the_system(path):
        save_file(_own(tensors), part, metadata)
        return _digest(part)


@contextmanager
def _told_by_the_system(path: Path) -> Iterator[None]:
    """What safetensors could not write, as the error that it is: a full disk is waited for."""
    try:
        yield
    except SafetensorError as error:
        if (number := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), os.fspath(path)) from error


def _own(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the host, each with memory of its own, as the format wants them."""
    seen: set[int] = set()
    owned = {}
    for name, tensor in tensors.items():
        host = tensor.cpu().contiguous()
        place = host.untyped_storage().data_ptr()
        whole = host.untyped_storage().nbytes() == host.nbytes
        owned[name] = host if whole and place not in seen else host.clone()
        seen.add(place)
    return owned


def load_tensors(path: Path, digest: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        if _digest(path) != digest:
            raise ValueError(f"{path} is damaged: its digest is not the one in the journal")
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata() or {}
        return metadata, load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is gone") from None
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]
