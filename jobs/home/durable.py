"""Files and folders that are whole or not there, whatever ends the process or the machine."""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"  # how names of what is being written end


def anyone() -> None:
    """May write."""


@contextmanager
def written_aside(path: Path, may: Callable[[], None] = anyone) -> Iterator[Path]:
    """A hidden name to write a file or a folder to, which becomes `path` once it is on the disk;
    nothing is left if not.

    `may` raises if that is for another process by now. It is asked last, when all is on the disk:
    one that takes over after that removes what has no name yet.
    """
    path = path.absolute()  # the working directory may change while a render runs
    # 40 characters, because a name of 255 bytes leaves no room for the rest
    part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}{PART}")
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
