"""What it costs that nothing is lost: checkpoints' share of a render, and the time a failure takes.

python benchmarks/recovery.py checkpoints   # the same render with and without, in turn
python benchmarks/recovery.py kill          # a stage killed over a local Ray cluster
python benchmarks/recovery.py hang          # a stage stopped: how soon that is noticed
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


def pace(every_s, frames):
    """Seconds from the first segment to the last, and how many checkpoints of how many MB."""
    with tempfile.TemporaryDirectory() as folder:
        render = Home(Path(folder)).create(plan(frames, f"checkpoint.every_s={every_s}"))
        RenderRun(render).run()
        events = JournalReader(render.path / "journal").poll()
        times = [event["time"] for event in events if event["event"] == "segment"]
        sizes = [event["bytes"] for event in events if event["event"] == "checkpoint"]
        return times[-1] - times[0], len(sizes), max(sizes, default=0) / 1e6


def checkpoints(args):
    """Pairs in turn, so that whatever else the machine does meets both."""
    ratios = []
    for i in range(args.times):
        took = {}
        for every_s in (3600, args.every_s) if i % 2 else (args.every_s, 3600):
            took[every_s] = pace(every_s, args.frames)
        without, (seconds, count, size) = took[3600][0], took[args.every_s]
        ratios.append(seconds / without)
        print(f"without {without:.2f} s, with {seconds:.2f} s ({count} of {size:.2f} MB)")
    print(f"ratio: median {statistics.median(ratios):.4f}, {min(ratios):.4f} to {max(ratios):.4f}")


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
