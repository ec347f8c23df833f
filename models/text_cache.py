"""Prompt embeddings on disk, by content: one safetensors file each, without the padding.

Nothing here fails a render: what cannot be read is made again, what cannot be written is logged.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_log = logging.getLogger("longreel")

_SAMPLE_BYTES = 2**20
_ABANDONED_S = 3600.0  # a temporary file this old belongs to a process that died


@dataclass(frozen=True)
class Embedding:
    """What a prompt became. S tokens up to its end, D channels; on the CPU."""

    rows_SD: Tensor
    dropped: int = 0  # tokens past the model's length
    dropped_words: str = ""  # the first of them, as text
    unknown_words: str = ""  # left out, because the encoder never saw them


def identity(path: Path) -> str:
    """Changes whenever a file, or the content of a folder, may have.

    Hashing 11 GB would cost more than encoding a prompt, so it takes names, sizes, times of change
    and the first and last MiB of each file. The times catch an edit in the middle, which leaves the
    ends alone; the ends (the header of safetensors, the checksums of a .pth) catch another file
    under an old date. A copy with new dates is encoded again, which costs time and nothing else.
    """
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        stat = file.stat()
        name = file.name if file == path else file.relative_to(path).as_posix()
        digest.update(json.dumps([name, stat.st_size, stat.st_mtime_ns]).encode())
        with file.open("rb") as opened:
            digest.update(opened.read(_SAMPLE_BYTES))
            opened.seek(max(0, stat.st_size - _SAMPLE_BYTES))
            digest.update(opened.read(_SAMPLE_BYTES))
    return digest.hexdigest()


class TextCache:
    """A folder that any number of processes may share; the longest unused files leave first."""

    def __init__(self, folder: Path, *, max_files: int = 4096, max_bytes: int = 2**30) -> None:
        self._folder = folder
        self._max_files = max_files
        self._max_bytes = max_bytes

    def get(self, key: str) -> Embedding | None:
        path = self._path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("text cache %s cannot be read: %s", path, error)
            return None
        try:
            embedding = _decode(data)
        except ValueError as error:
            _log.warning(
                "text cache file %s is corrupt (%s): encoding the prompt anew", path, error
            )
            with contextlib.suppress(OSError):  # a folder we may only read: put() will say so
                path.unlink()
            return None
        with contextlib.suppress(OSError):  # likewise; then files leave in order of writing
            os.utime(path)  # not atime, which many file systems do not keep
        return embedding

    def put(self, key: str, embedding: Embedding) -> None:
        path = self._path(key)
        # a name of its own, then renamed: readers and other writers see whole files only
        temporary = path.with_name(f"{key}.{uuid.uuid4().hex}.tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(_encode(embedding))
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            self._prune()
        except OSError as error:
            _log.warning(
                "text cache %s cannot be written, so prompts are not kept: %s", path, error
            )

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"

    def _prune(self) -> None:
        kept = []
        abandoned = time.time() - _ABANDONED_S
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                stat = path.stat()
                if path.suffix == ".safetensors":
                    kept.append((stat.st_mtime_ns, stat.st_size, path))
                elif path.suffix == ".tmp" and stat.st_mtime < abandoned:
                    path.unlink()
        num_bytes = 0
        for count, (_, size, path) in enumerate(sorted(kept, reverse=True), start=1):
            num_bytes += size
            if count > self._max_files or num_bytes > self._max_bytes:
                path.unlink(missing_ok=True)


def _encode(embedding: Embedding) -> bytes:
    from safetensors.torch import save

    rows = embedding.rows_SD.contiguous()
    metadata = {
        "dropped": str(embedding.dropped),
        "dropped_words": embedding.dropped_words,
        "unknown_words": embedding.unknown_words,
        "sha256": hashlib.sha256(_raw(rows)).hexdigest(),
    }
    return save({"rows": rows}, metadata)


def _decode(data: bytes) -> Embedding:
    """ValueError: truncated, or not what was written; safetensors itself sums up nothing."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        rows = load(data)["rows"]
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        words = metadata["dropped_words"], metadata["unknown_words"]
        embedding = Embedding(rows, int(metadata["dropped"]), *words)
        expected = metadata["sha256"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if hashlib.sha256(_raw(rows)).hexdigest() != expected:
        raise ValueError("its checksum is another")
    return embedding


def _raw(rows_SD: Tensor) -> bytes:
    return rows_SD.view(torch.uint8).numpy().tobytes()
