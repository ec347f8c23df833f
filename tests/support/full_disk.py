"""Renders onto a disk that fills up, in a process of its own, which writes what has become."""

import ctypes
import json
import logging
import os
import threading
import time
from pathlib import Path

from tiny_blocks import ARCHS, overrides, shallow

from longreel.jobs.home.home import Home
from longreel.jobs.home.record import RenderRun
from longreel.jobs.render import plan_render
from longreel.models import arch as archs

EARLY = ("denoise", 6)  # before the first segment
LATER = ("decode", 13)  # after it: the next thing to be written are latents
_NEWUSER, _NEWNS, _PRIVATE = 0x10000000, 0x00020000, 0x4000 | 0x40000  # to the system


def mount(disk: Path) -> None:
    """A disk of a megabyte, which nobody else sees, and which is gone with this process: as
    `unshare --map-root-user --mount` and `mount` do it."""
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()

    def ask(call, *arguments):
        if call(*arguments):
            raise OSError(ctypes.get_errno(), call.__name__)

    ask(libc.unshare, _NEWUSER | _NEWNS)
    here = Path("/proc/self")
    (here / "setgroups").write_text("deny")
    (here / "uid_map").write_text(f"0 {user} 1")
    (here / "gid_map").write_text(f"0 {group} 1")
    ask(libc.mount, None, b"/", None, _PRIVATE, None)
    ask(libc.mount, b"tmpfs", os.fsencode(disk), b"tmpfs", 0, b"size=1m")


def fill(disk: Path) -> None:
    """To the last byte."""
    with (disk / "filler").open("wb", buffering=0) as file:
        size = 2**16
        while size:
            try:
                file.write(b"\1" * size)
            except OSError:
                size //= 2


def made(render) -> dict:
    status = render.status()
    parts = [path.name for path in render.path.rglob("*.part")]
    digests = [segment.digest for segment in render.segments()]
    return {"state": status.state, "reason": status.reason, "digests": digests, "parts": parts}


def filled_at(disk: Path, when: tuple[str, int]):
    """A report that fills the disk once."""
    waiting = [when]

    def report(what, done, total, note=""):
        if waiting and what == when[0] and done >= when[1]:
            waiting.pop()
            fill(disk)

    return report


def go(disk: Path, elsewhere: Path) -> None:
    mount(disk)
    archs.ARCHS.update(ARCHS)
    logging.getLogger("longreel").setLevel(logging.ERROR)  # that a checkpoint is left out
    more = shallow("causal"), "model.device=cpu", "checkpoint.every_s=0"
    plan = plan_render("a cat", frames=33, seed=3, overrides=overrides("causal", *more))
    home = Home(disk / "home")
    truth = Home(elsewhere).create(plan)
    RenderRun(truth).run()

    waits = home.create(plan)
    run = threading.Thread(target=RenderRun(waits, filled_at(disk, LATER), full_s=60).run)
    run.start()
    while not (disk / "filler").exists():
        time.sleep(0.01)
    time.sleep(2.0)  # longer than the rest of the render takes
    before = made(waits)
    (disk / "filler").unlink()
    run.join(60)

    fails, error = home.create(plan), ""
    try:
        RenderRun(fails, filled_at(disk, EARLY), full_s=0.3).run()
    except OSError as caught:
        error = str(caught)
    left = made(fails)
    (disk / "filler").unlink()
    RenderRun(home.open(fails.id)).run()

    results = {"truth": made(truth), "while full": before, "after": made(waits)}
    results |= {"error": error, "left": left, "resumed": made(fails)}
    (elsewhere / "results.json").write_text(json.dumps(results))
