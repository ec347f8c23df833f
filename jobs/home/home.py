"""Where renders are kept: a folder each, under an id of ours."""

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...configs.files import expand
from .durable import sync, write_whole
from .folder import RenderFolder
from .ledger import read_ledger
from .lock import Taken, is_read
from .manifest import MANIFEST, write_manifest
from .place import default_home, renders_command, resume_command

if TYPE_CHECKING:  # to look at renders takes no torch
    from ...pipeline.plan import Plan


def way_on(folder: RenderFolder) -> str:
    """What a person does with a render that has ended before its end."""
    return f"`{resume_command(folder.path)}` goes on from frame {folder.status().frames_done}"


class Home:
    """A folder of renders; it need not exist."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = expand(path) if path is not None else default_home()
        self._renders = self.path.absolute() / "renders"

    def create(
        self, plan: "Plan", output: Path | None = None, name: str | None = None
    ) -> RenderFolder:
        """A new render, queued; `output`: where its file is wanted; `name`: from `new_name`."""
        from ...pipeline.parts import check_parts
        from .begin import begin

        if plan.config.parallel.address == "local":  # elsewhere the files are the cluster's
            check_parts(plan)
        name = name or new_name()
        folder = self._renders / name
        assert not self.has(name), name
        shutil.rmtree(folder, ignore_errors=True)  # of a process that ended in here
        try:
            begin(folder, plan, output)
            sync(self._renders)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise ValueError(
                f"--home={self.path} takes no render ({error.strerror}: {error.filename}); name "
                "another folder with --home"
            ) from error
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return RenderFolder(folder)

    def copy(self, source: RenderFolder, name: str | None = None) -> RenderFolder:
        """A render of its own that begins with all that is there of this one; `name` as above."""
        name, journal = name or new_name(), (source.path / "journal").read_bytes()
        folder = self._renders / name
        try:
            folder.mkdir(parents=True)
            write_whole(folder / "journal", journal)
            segments = read_ledger(folder).segments  # of that journal, whatever has come since
            kept = [folder / source.init.name, *(path for s in segments for path in s.files)]
            kept += [folder / p.relative_to(source.path) for p in source.path.glob("inputs/*/*")]
            for place in kept:
                place.parent.mkdir(parents=True, exist_ok=True)
                # neither is ever written into
                place.hardlink_to(source.path / place.relative_to(folder))
            made = replace(source.manifest, render=name, created_s=round(time.time(), 3), output="")
            write_manifest(folder, made)  # the last: without it, it is no render
            sync(self._renders)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return RenderFolder(folder)

    def has(self, render: str) -> bool:
        """Whether there is one of this id."""
        return (self._renders / render / MANIFEST).is_file()

    def holds(self, render: str) -> bool:
        """Whether there is a folder of this id, whatever is in it."""
        is_name = render[:1] not in ("", ".") and os.path.basename(render) == render
        return is_name and os.path.isdir(self._renders / render)

    def open(self, render: str) -> RenderFolder:
        """By its id, or the beginning of one."""
        if self.holds(render):  # without a look at all the others
            return RenderFolder(self._renders / render)
        found = [name for name in self.names() if name.startswith(render)]
        if len(found) != 1 or not render:
            what = f"{len(found)} renders begin with it" if found else "there is no such render"
            raise ValueError(
                f"render={render!r} names none in {self.path}: {what}; "
                f"`{renders_command(self.path)}` lists those there are"
            )
        return RenderFolder(self._renders / found[0])

    def renders(self, hear: Callable[[str], None] = lambda why: None) -> list[RenderFolder]:
        """All that can be opened, the newest first; `hear` is told why of those that cannot."""
        folders = []
        for name in reversed(self.names()):
            try:
                folders.append(RenderFolder(self._renders / name))
            except ValueError as error:  # damaged, or of another version
                if self.has(name):  # else it is being made or removed
                    hear(str(error))
        return folders

    def remove(self, folder: RenderFolder) -> None:
        """With all that is in it. ValueError while it is being made."""
        if folder.status().state == "running":
            raise Taken(
                f"render {folder.id} is being made, and its process would lose its folder; end "
                "that process first"
            )
        if is_read(folder.path):
            raise Taken(
                f"render {folder.id} is being written to a file, which would stay a part; wait for "
                "that"
            )
        self.discard(folder.id)

    def discard(self, render: str) -> None:
        """With all that is in it, whatever that is."""
        for left in self._renders.glob(".*.gone"):  # by whoever was ended meanwhile
            shutil.rmtree(left, ignore_errors=True)
        gone = self._renders / f".{render}.gone"
        with suppress(FileNotFoundError):  # another was first
            (self._renders / render).rename(gone)  # at once, for whoever lists them
        shutil.rmtree(gone, ignore_errors=True)  # what is left goes with the next one

    def names(self) -> list[str]:
        """Ids, the oldest first."""
        if not self._renders.is_dir():
            return []
        found = (path for path in self._renders.iterdir() if path.is_dir())
        return sorted(path.name for path in found if path.name[0] != ".")


def new_name() -> str:
    """An id that sorts by time, to a quarter of a millisecond."""
    now = time.time()
    moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    return f"{moment}-{int(now % 1 * 4096):03x}{secrets.token_hex(2)}"


def is_name(text: str) -> bool:
    """Whether it could be an id, of a render that is there or was."""
    return re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{7}", text) is not None
