"""What it costs that nothing is lost: checkpoints' share of a render, and the time a failure takes.

python benchmarks/recovery.py checkpoints   # the same render with and without, in turn
python benchmarks/recovery.py kill          # a stage killed over a local Ray cluster, ten times
"""

import argparse
import itertools
import logging
import os
import platform
import signal
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

from longreel.jobs.home.home import Home
from longreel.jobs.home.record import RenderRun
from longreel.jobs.render import plan_render, stream_chunks

STATES = ("FENCE", "REPAIR", "PLACE", "LOAD", "JOIN", "RUN")


def plan(frames, *more):
    settings = ["blocks.policy=causal", "model.device=cpu", "model.text_cache=", *more]
    return plan_render("a cat", frames=frames, overrides=settings)


def seconds_of(every_s, frames):
    with tempfile.TemporaryDirectory() as folder:
        render = Home(Path(folder)).create(plan(frames, f"checkpoint.every_s={every_s}"))
        start = time.perf_counter()
        RenderRun(render).run()
        took = time.perf_counter() - start
        events = (render.path / "journal").read_text().count('"event": "checkpoint"')
        files = (render.path / "checkpoints").glob("*")
        return took, events, sum(path.stat().st_size for path in files) / 1e6


def checkpoints(frames, times, every_s):
    """Pairs in turn, so that whatever else the machine does meets both."""
    seconds_of(3600, frames)
    ratios = []
    for _ in range(times):
        without, none, _ = seconds_of(3600, frames)
        took, count, size = seconds_of(every_s, frames)
        ratios.append(took / without)
        print(f"without {without:.2f} s ({none}), with {took:.2f} s ({count} of {size:.2f} MB)")
    print(
        f"median ratio {statistics.median(ratios):.4f}, from {min(ratios):.4f} to {max(ratios):.4f}"
    )


class Times(logging.Handler):
    """When the chain entered which state."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.seen = []

    def emit(self, record):
        words = record.getMessage().split()
        if words[0] == "chain" and words[-1] in STATES:
            self.seen.append((time.perf_counter(), words[-1]))


def kill(times, frames):
    log, clock = logging.getLogger("longreel"), Times()
    log.setLevel(logging.DEBUG)
    log.addHandler(clock)
    log.propagate = False
    ours = plan(
        frames,
        "parallel.backend=ray",
        "parallel.num_stages=2",
        "checkpoint.every_s=0.2",
        "parallel.repairs=100",
    )
    kills, blocks, rows = [], [], []

    def report(what, done, total, note=""):
        if what != "denoise":
            return
        now = time.perf_counter()
        since, state = clock.seen[-1] if clock.seen else (now, "")
        if len(blocks) < len(kills) and state == "RUN" and now > since > kills[-1]:
            blocks.append(now)
            rows.append((kills[-1], [one for one in clock.seen if one[0] > kills[-1]], now))
        ready = len(blocks) == len(kills) < times
        if ready and done % 40 == 39:
            member = stream._generator._backend._crew.members[1]
            kills.append(time.perf_counter())
            os.kill(member.pid, signal.SIGKILL)

    with closing(stream_chunks(ours, report)) as stream:
        for _ in stream:
            pass
    totals = []
    for start, states, end in rows:
        marks = [start, *(when for when, _ in states), end]
        names = ["detect", *(name.lower() for _, name in states)]
        names = [*names[:-1], "replay"]
        spans = [stop - start for start, stop in itertools.pairwise(marks)]
        print(", ".join(f"{name} {span:.2f}" for name, span in zip(names, spans, strict=True)))
        totals.append(end - start)
    print(f"kill to the next task done: median {statistics.median(totals):.2f} s of {len(totals)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["checkpoints", "kill"])
    parser.add_argument("--frames", type=int, default=481)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--every-s", type=float, default=1.0)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f} before it began")
    if args.what == "checkpoints":
        checkpoints(args.frames, args.times, args.every_s)
    else:
        kill(args.times, args.frames)


if __name__ == "__main__":
    main()
