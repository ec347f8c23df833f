"""Renders onto a disk that fills up: run where that disk is mounted, it prints what has become."""

import json
import logging
import sys
import threading
import time
from pathlib import Path

from tiny_blocks import ARCHS, overrides

from longreel.jobs.home.home import Home
from longreel.jobs.home.record import RenderRun
from longreel.jobs.render import plan_render
from longreel.models import arch as archs

EARLY = ("denoise", 6)  # before the first segment
LATER = ("decode", 13)  # after it: the next thing to be written are latents


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


def main(disk: Path, elsewhere: Path) -> None:
    archs.ARCHS.update(ARCHS)
    logging.getLogger("longreel").setLevel(logging.ERROR)  # that a checkpoint is left out
    settings = overrides("causal", "model.device=cpu", "checkpoint.every_s=0")
    plan = plan_render("a cat", frames=33, seed=3, overrides=settings)
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
    print(json.dumps({**results, "error": error, "left": left, "resumed": made(fails)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
