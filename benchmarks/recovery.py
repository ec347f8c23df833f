"""What it costs that nothing is lost: checkpoints' share of a render, and the time a failure takes.

python benchmarks/recovery.py checkpoints   # the same render with and without, in turn
python benchmarks/recovery.py kill          # a stage killed over a local Ray cluster
python benchmarks/recovery.py hang          # a stage stopped: how soon that is noticed
"""

import argparse
import itertools
import logging
import math
import os
import platform
import signal
import statistics
import tempfile
import time
from contextlib import closing, contextmanager
from pathlib import Path

from longreel.jobs.home.attempt import Attempt
from longreel.jobs.home.home import Home
from longreel.jobs.home.journal import JournalReader
from longreel.jobs.home.record import RenderRun
from longreel.jobs.render import plan_render, stream_chunks

# what each state of the chain is in the account, until the next one begins
PARTS = {
    "FENCE": "fence",
    "REPAIR": "restart",
    "PLACE": "place",
    "LOAD": "reload",
    "JOIN": "rejoin",
    "RUN": "replay",
}
TIMEOUT_S = 4.0  # parallel.transfer_timeout_s of `hang`


SMALL = (
    "model.device=cpu",
    "model.text_cache=",
    "video.height=32",
    "video.width=48",
    "sampling.steps=8",
    "blocks.policy=dualparal",
    "blocks.size=2",
    "blocks.left=1",
    "blocks.right=1",
)


def plan(frames, *more):
    return plan_render("a cat", preset="tiny", frames=frames, overrides=[*SMALL, *more])


class Clock:
    """What a render takes between its first and its last decoded block, and a checkpoint of it."""

    def __init__(self):
        self._marks, self.saves = [], []

    def report(self, what, done, total, note=""):
        if what == "decode" and done:
            self._marks.append((time.perf_counter(), time.process_time()))

    @property
    def spans(self):
        """Seconds by the clock, and of all threads on the cores."""
        return [last - first for first, last in zip(self._marks[0], self._marks[-1], strict=True)]

    @contextmanager
    def watching(self):
        """How long each checkpoint takes the thread that saves it: by the clock, on a core."""
        save = Attempt.save

        def timed(attempt, checkpoint):
            start = time.perf_counter(), time.thread_time()
            save(attempt, checkpoint)
            self.saves.append((time.perf_counter() - start[0], time.thread_time() - start[1]))

        Attempt.save = timed
        try:
            yield
        finally:
            Attempt.save = save


def made(every_s, frames):
    """The clock of a render, and how many checkpoints of how many MB it had."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, clock.watching():
        render = Home(Path(folder)).create(plan(frames, f"checkpoint.every_s={every_s}"))
        RenderRun(render, clock.report).run()
        events = JournalReader(render.path / "journal").poll()
    sizes = [event["bytes"] for event in events if event["event"] == "checkpoint"]
    return clock, len(sizes), max(sizes, default=0) / 1e6


def checkpoints(args):
    """Pairs in turn, so that whatever else the machine does meets both."""
    made(args.every_s, args.frames)  # warms up
    ratios, saves, counts = [], [], []
    for i in range(args.times):
        order = (3600, args.every_s) if i % 2 else (args.every_s, 3600)
        took = {every_s: made(every_s, args.frames) for every_s in order}
        (plain, *_), (clock, count, size) = took[3600], took[args.every_s]
        ratios.append([a / b for a, b in zip(clock.spans, plain.spans, strict=True)])
        saves += clock.saves
        counts.append(count)
    last = plain.spans
    print(f"{args.times} pairs of about {last[0]:.2f} s ({last[1]:.2f} s on cores)", end=", ")
    print(f"with {min(counts)} to {max(counts)} checkpoints of {size:.2f} MB each")
    for name, found in zip(
        ("by the clock", "on the cores"), zip(*ratios, strict=True), strict=True
    ):
        low, high = interval(found)
        print(f"ratio {name}: median {statistics.median(found):.4f}, {low:.4f} to {high:.4f}")
    clock_s, core_s = (statistics.median(each) * 1e3 for each in zip(*saves, strict=True))
    print(f"one takes its thread {clock_s:.1f} ms, {core_s:.1f} ms of them on a core")


def interval(values):
    """In which the median lies with 95 % certainty, whatever the distribution."""
    found = sorted(values)
    rank = max(0, math.floor(len(found) / 2 - 0.98 * math.sqrt(len(found))))
    return found[rank], found[-1 - rank]


class States(logging.Handler):
    """When the chain entered which state."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.seen = []

    def emit(self, record):
        words = record.getMessage().split()
        if words[0] == "chain" and words[-1] in PARTS:
            self.seen.append((time.perf_counter(), words[-1]))


class Blows:
    """A stage that is hurt now and then, and how the chain comes back each time."""

    def __init__(self, sent, times, every):
        self.states, self.rows = States(), []
        self._sent, self._times, self._every = sent, times, every
        self._struck = self._newest = None
        self.stream = None

    def report(self, what, done, total, note=""):
        if what != "denoise" or not done:
            return
        chain, now = self.stream._generator._chain, time.perf_counter()
        if self._struck is None:
            if len(self.rows) < self._times and done % self._every == 0:
                self._struck, self._newest = now, chain._newest
                os.kill(chain._devices.crew.members[1].pid, self._sent)
            return
        since = [state for state in self.states.seen if state[0] > self._struck]
        if since and since[-1][1] == "RUN" and chain._newest > self._newest:
            self.rows.append((self._struck, since, now))
            self._struck = None
            print(account(self.rows[-1]), flush=True)


def account(row):
    """Of one blow: seconds of each part."""
    start, states, end = row
    marks = [start, *(when for when, _ in states), end]
    names = ["detect", *(PARTS[name] for _, name in states)]
    spans = [stop - start for start, stop in itertools.pairwise(marks)]
    return ", ".join(f"{name} {span:.2f}" for name, span in zip(names, spans, strict=True))


def blows(args, sent):
    log, hurt = logging.getLogger("longreel"), Blows(sent, args.times, every=40)
    log.setLevel(logging.DEBUG)
    log.addHandler(hurt.states)
    log.propagate = False
    ours = plan(
        args.frames,
        "parallel.backend=ray",
        "parallel.num_stages=2",
        f"checkpoint.every_s={args.every_s}",
        f"parallel.transfer_timeout_s={TIMEOUT_S if sent == signal.SIGSTOP else 60}",
    )
    with closing(stream_chunks(ours, hurt.report)) as stream:
        hurt.stream = stream
        for _ in stream:
            if len(hurt.rows) == args.times:
                break
    totals = [end - start for start, _, end in hurt.rows]
    detected = [states[0][0] - start for start, states, _ in hurt.rows]
    print(
        f"{len(totals)} blows; to the next new block: median {statistics.median(totals):.2f} s, "
        f"{min(totals):.2f} to {max(totals):.2f}; noticed after {max(detected):.2f} s at most"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["checkpoints", "kill", "hang"])
    parser.add_argument("--frames", type=int, default=481)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--every-s", type=float, default=1.0)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f} before it began")
    if args.what == "checkpoints":
        checkpoints(args)
    else:
        blows(args, signal.SIGKILL if args.what == "kill" else signal.SIGSTOP)


if __name__ == "__main__":
    main()
