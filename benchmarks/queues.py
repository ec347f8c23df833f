"""What a second stage gives two queues of `shapes`: seconds to denoise one video, over Ray actors.

python benchmarks/queues.py [--runs 3] [--frames 257] [model.dtype=bfloat16 ...]

`forcing` has one window at a time, and stages work at once on its two passes alone;
`dualparal-staggered` has two blocks in flight. Each kind in turn, one thread a stage, nothing
decoded: from the end of the first task to the end of the last.
"""

import argparse
import os
import platform
import statistics
import time

import torch

from longreel.jobs.cluster import connect, open_backend
from longreel.jobs.render import plan_render
from longreel.pipeline.generator import Generator
from longreel.pipeline.plan import Plan

PROMPT = "two blue squares bounce up and down on a beige background"
QUEUES = ("forcing", "dualparal-staggered")


def make_plan(queue: str, stages: int, frames: int, overrides: list[str]) -> Plan:
    return plan_render(
        PROMPT,
        preset="shapes",
        frames=frames,
        overrides=[
            "model.device=cpu",
            "model.text_cache=",
            f"blocks.policy={queue}",
            f"parallel.num_stages={stages}",
            "parallel.backend=ray",
            *overrides,
        ],
    )


def seconds(plan: Plan) -> float:
    ends: list[float] = []

    def report(what: str, done: int, total: int, note: str = "") -> None:
        if what == "denoise":
            ends.append(time.monotonic())

    for _ in Generator(plan, report, open_backend).blocks():
        pass
    return ends[-1] - ends[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--frames", type=int, default=257)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    kinds = [(queue, stages) for queue in QUEUES for stages in (1, 2)]
    plans = {kind: make_plan(*kind, args.frames, args.overrides) for kind in kinds}
    print(
        f"{platform.machine()} CPU, {os.cpu_count()} cores, torch {torch.__version__}; "
        f"{args.frames} frames, {args.runs} runs in turn"
    )
    found: dict[tuple[str, int], list[float]] = {kind: [] for kind in kinds}
    disconnect = connect(plans[QUEUES[0], 2].config.parallel.address)
    try:
        for i in range(args.runs):
            for kind in kinds if i % 2 == 0 else kinds[::-1]:
                load = os.getloadavg()[0]
                found[kind].append(seconds(plans[kind]))
                queue, stages = kind
                print(
                    f"{queue}, {stages} stages: {found[kind][-1]:.2f} s, load {load:.1f}",
                    flush=True,
                )
    finally:
        disconnect()
    print("\nmedians")
    for queue in QUEUES:
        one, two = (statistics.median(found[queue, stages]) for stages in (1, 2))
        print(f"{queue}: 1 stage {one:.2f} s, 2 stages {two:.2f} s, {one / two:.2f} times as fast")


if __name__ == "__main__":
    main()
