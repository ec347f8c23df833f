"""Files that are whole or not there, whatever ends the process or the machine."""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"  # how names of what is being written end


def anyone() -> None:
    """May write."""


@contextmanager
def written_aside(path: Path, may: Callable[[], None] = anyone) -> Iterator[Path]:
    """A name to write to, which becomes `path` once it is on the disk; nothing is left if not.

    `may` raises if that is for another process by now. It is asked last, when all is on the disk:
    one that takes over after that removes what has no name yet.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        yield part
        sync(part)
        may()
        part.replace(path)
        sync(path.parent)
    except FileNotFoundError:
        may()  # whoever has taken over has removed it
        raise
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_whole(path: Path, data: bytes, may: Callable[[], None] = anyone) -> None:
    with written_aside(path, may) as part:
        part.write_bytes(data)


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
