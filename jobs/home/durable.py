"""Files and folders that are whole or not there, whatever ends the process or the machine."""

import glob
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PART = ".part"  # how names of what is being written end
_TOKEN_BYTES = 4
_SURELY_LEFT_S = 86_400.0  # whoever writes something changes it more often


def anyone() -> None:
    """May write."""


@contextmanager
def written_aside(path: Path, may: Callable[[], None] = anyone) -> Iterator[Path]:
    """A hidden name to write a file or a folder to, which becomes `path` once it is on the disk;
    nothing is left if not.

    `may` raises if that is for another process by now. It is asked last, when all is on the disk:
    one that takes over after that removes what has no name yet. Where nobody can take over, what a
    process that was killed has left of `path` is removed by the next one to write it.
    """
    path = path.absolute()  # the working directory may change while a render runs
    start = f".{path.name[:40]}."  # a name of 255 bytes leaves no room for the rest
    part = path.with_name(f"{start}{secrets.token_hex(_TOKEN_BYTES)}{PART}")
    if may is anyone:
        _remove_left(path.parent, start)
    try:
        yield part
        name(part, path, may)
    except BaseException as error:
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)
        if isinstance(error, FileNotFoundError):
            may()  # it was removed by whoever has taken over
        raise


def _remove_left(folder: Path, start: str) -> None:
    for left in folder.glob(f"{glob.escape(start)}{'[0-9a-f]' * 2 * _TOKEN_BYTES}{PART}"):
        with suppress(OSError):  # another was first
            if time.time() - left.stat().st_mtime > _SURELY_LEFT_S:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def write_whole(path: Path, data: bytes, may: Callable[[], None] = anyone) -> None:
    with written_aside(path, may) as part:
        part.write_bytes(data)


def name(part: Path, path: Path, may: Callable[[], None] = anyone) -> None:
    """What is complete becomes `path`: on the disk first, or a crash could leave an empty file."""
    for file in part.rglob("*"):
        sync(file)
    sync(part)
    may()
    part.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_parts(folder: Path, may: Callable[[], None]) -> None:
    """What processes before this one had begun to write; `may` as above."""
    parts = [*folder.glob(f"**/.*{PART}")]
    may()  # none of these is of one that takes over from here on
    for part in parts:
        part.unlink(missing_ok=True)
