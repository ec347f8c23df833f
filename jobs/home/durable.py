"""Files and folders that are whole or not there, whatever ends the process or the machine."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"  # how names of what is being written end


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A hidden name to write a file or a folder to, which becomes `path` once it is on the disk;
    nothing is left if not."""
    path = path.absolute()  # the working directory may change while a render runs
    # 40 characters, because a name of 255 bytes leaves no room for the rest
    part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}{PART}")
    try:
        yield part
        name(part, path)
    except BaseException:
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)
        raise


def write_whole(path: Path, data: bytes) -> None:
    with written_aside(path) as part:
        part.write_bytes(data)


def name(part: Path, path: Path) -> None:
    """What is complete becomes `path`: on the disk first, or a crash could leave an empty file."""
    for file in part.rglob("*"):
        sync(file)
    sync(part)
    part.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_parts(folder: Path) -> None:
    """What a process that was killed had begun to write."""
    for part in folder.glob(f"**/.*{PART}"):
        part.unlink(missing_ok=True)
