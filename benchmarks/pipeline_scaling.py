"""Two stages beside one, and beside two copies of the one at once: what a second core gives each.

    python benchmarks/pipeline_scaling.py             # about eight minutes
    python benchmarks/pipeline_scaling.py --runs 1 --blocks 5

Each kind of run in turn, over Ray actors with one thread each: denoising alone, random weights.
Two copies at once show what two cores can give together. In its steady state, which is what is left
without filling and draining the chain, two stages should give 0.95 of that or more. Beside every
run stands what the simulator says of it, calibrated in as many actors as the run keeps busy, just
before it and just after it: shared machines change their speed within a minute.
"""

import argparse
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from longreel.jobs.cluster import connect
from longreel.jobs.render import plan_render
from longreel.models.arch import ARCHS, ModelArch, VaeArch, WanArch
from longreel.parallel.crew import Crew
from longreel.parallel.placement import place
from longreel.parallel.process import settle
from longreel.parallel.ray_chain import ChainParts, Devices, RayChain
from longreel.parallel.stage import Inputs, Moved
from longreel.parallel.tasks import Task
from longreel.pipeline.backend import Backend, make_stage, make_stepper
from longreel.pipeline.calibrate import calibrate
from longreel.pipeline.codec import Decoded
from longreel.pipeline.condition import Condition
from longreel.pipeline.cost import Seconds, model_cost
from longreel.pipeline.generator import Generator
from longreel.pipeline.plan import Plan
from longreel.pipeline.slices import slices
from longreel.pipeline.stepper import Stepper
from longreel.pipeline.timeline import play
from longreel.pipeline.windows import Sampling, Windows

ARCH = ModelArch(
    dit=WanArch(num_layers=8, num_heads=4, ffn_dim=2048, text_dim=64),  # dim 512
    vae=VaeArch(base_dim=4, num_res_blocks=1),
    text_len=64,
)
HEIGHT, WIDTH = 128, 160  # 80 tokens a latent; 4 latents a block after 2 of the past: 480 a window
SIZE, LEFT, RIGHT, STEPS = 4, 2, 2, 4
CALIBRATIONS = 3  # before a run, and after it


@dataclass(frozen=True)
class Kind:
    """So many chains at once, of so many stages."""

    name: str
    stages: int
    copies: int

    @property
    def processes(self) -> int:
        return self.stages * self.copies


KINDS = [Kind("1 stage", 1, 1), Kind("2 stages", 2, 1), Kind("2 copies", 1, 2)]


@dataclass(frozen=True)
class Outcome:
    rate: float  # tasks a second, steady, of all copies
    wall_s: float  # from the first task's window to the last task's end, of the slowest copy
    predicted_s: float


def make_plan(stages: int, num_blocks: int) -> Plan:
    ARCHS["scaling"] = ARCH
    return plan_render(
        "a cat",
        frames=1 + 4 * (SIZE * num_blocks - 1),
        overrides=[
            "model.arch=scaling",
            "model.checkpoint=random",
            "model.device=cpu",
            "model.text_cache=",
            f"video.height={HEIGHT}",
            f"video.width={WIDTH}",
            f"sampling.steps={STEPS}",
            "sampling.guidance_mode=none",
            "blocks.policy=dualparal-grouped",
            f"blocks.size={SIZE}",
            f"blocks.left={LEFT}",
            f"blocks.right={RIGHT}",
            "blocks.depth=4",
            f"parallel.num_stages={stages}",
            "parallel.backend=ray",
        ],
    )


def note(path: Path) -> None:
    """The clock is the machine's, so that all processes read the same."""
    with path.open("a") as file:
        file.write(f"{time.monotonic()}\n")


class ClockedWindows(Windows):
    """Notes when the first window is made, which it does not before all copies are there."""

    def __init__(self, sampling: Sampling, path: Path, copies: int) -> None:
        super().__init__(sampling=sampling)
        self._path = path
        self._copies = copies

    def inputs(self, task: Task) -> Inputs:
        if task.number == 0:
            note(self._path)
            while len(list(self._path.parent.iterdir())) < self._copies:
                time.sleep(0.001)
        return super().inputs(task)


class ClockedStepper:
    """Notes when each task has gone through all stages."""

    def __init__(self, stepper: Stepper, path: Path) -> None:
        self._stepper = stepper
        self._path = path

    def step(self, task: Task, velocities_BCTHW: Sequence[Tensor]) -> list[Moved]:
        moved = self._stepper.step(task, velocities_BCTHW)
        note(self._path)
        return moved

    def held(self) -> dict[int, tuple[Tensor, ...]]:
        return self._stepper.held()

    def restore(self, held: Mapping[int, tuple[Tensor, ...]]) -> None:
        self._stepper.restore(held)


def clocked_windows(sampling: Sampling, path: Path, copies: int, device: str) -> ClockedWindows:
    return ClockedWindows(sampling.to(torch.device(device)), path, copies)


def clocked_stepper(plan: Plan, sampling: Sampling, path: Path, device: str) -> ClockedStepper:
    return ClockedStepper(make_stepper(plan, sampling, device), path)


class ClockedBackend:
    """Ray actors and nothing beside them: prompts are random, and nothing is decoded."""

    def __init__(self, path: Path, copies: int, plan: Plan) -> None:
        self._path, self._copies, self._plan = path, copies, plan
        self._placement = place(plan.layout, "cpu", timeout_s=60, may_grow=False)
        self._crew = Crew(self._placement)

    def texts(self, prompts: Sequence[str]) -> Tensor:
        return torch.randn(len(prompts), ARCH.text_len, ARCH.dit.text_dim)

    def condition(self) -> Condition:
        return Condition()

    def chain(self, sampling: Sampling) -> RayChain:
        plan, path = self._plan, self._path
        parts = ChainParts(
            stage=partial(make_stage, plan),
            windows=partial(clocked_windows, sampling, path, self._copies),
            stepper=partial(clocked_stepper, plan, sampling, path),
        )
        devices = Devices(crew=self._crew, slices=slices(plan), device="cpu")
        return RayChain(devices, parts, timeout_s=60)

    def expect_decoding(self) -> None:
        pass

    def restore(self, state: object, num_frames: int) -> None:
        raise NotImplementedError

    def decode(self, latents_BCTHW: Tensor, keep: bool = False) -> Iterator[Decoded]:
        raise NotImplementedError

    def busy_s(self) -> list[float]:
        return []

    def close(self) -> None:
        self._crew.close()
        self._placement.remove()


def run(kind: Kind, num_blocks: int) -> tuple[float, float]:
    """Steady tasks a second, and seconds in all."""
    plan = make_plan(kind.stages, num_blocks)

    def render(path: Path) -> None:
        def opened(plan: Plan, given_up: threading.Event) -> Backend:
            return ClockedBackend(path, kind.copies, plan)

        for _ in Generator(plan, open_backend=opened).blocks():
            pass

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(i) for i in range(kind.copies)]
        threads = [threading.Thread(target=render, args=(path,)) for path in paths]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        clocks = [[float(line) for line in path.read_text().split()] for path in paths]
    num_tasks = sum(1 for _ in plan.schedule.tasks())
    assert all(len(clock) == num_tasks + 1 for clock in clocks), "a copy did not end"
    # the same tasks for every kind: those in which two stages are both busy from end to end
    steady = [(num_tasks - 4) / (clock[-3] - clock[2]) for clock in clocks]
    start = max(clock[0] for clock in clocks)
    return sum(steady), max(clock[-1] for clock in clocks) - start


class Gauge:
    """An actor as stages are, so that it measures what they have: Ray is kinder to all others."""

    def __init__(self) -> None:
        settle()

    def measure(self, plan: Plan) -> Seconds:
        settle()  # of this thread
        return calibrate(
            plan.arch,
            plan.schedule,
            height=HEIGHT,
            width=WIDTH,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )


def measured(gauges: Sequence[Any], plan: Plan) -> list[Seconds]:
    """Of a few rounds, in each of which all gauges measure the same at once."""
    found: list[Seconds] = []
    for _ in range(CALIBRATIONS):
        found += ray.get([gauge.measure.remote(plan) for gauge in gauges], timeout=120)
    return found


def mean(found: Sequence[Seconds]) -> Seconds:
    names = [field.name for field in fields(Seconds)]
    return Seconds(**{name: statistics.mean(getattr(s, name) for s in found) for name in names})


def predict(kind: Kind, num_blocks: int, seconds: Seconds) -> float:
    plan = make_plan(kind.stages, num_blocks)
    cost = model_cost(ARCH, height=HEIGHT, width=WIDTH, dtype="float32", passes=1, seconds=seconds)
    return play(plan.schedule, kind.stages, cost).home[-1]


def report(outcomes: dict[str, list[Outcome]], num_tasks: int) -> None:
    print(f"\nmedians, {num_tasks} tasks a chain")
    rates = {}
    for kind in KINDS:
        mine = outcomes[kind.name]
        rates[kind.name] = statistics.median(one.rate for one in mine)
        wall = statistics.median(one.wall_s for one in mine)
        predicted = statistics.median(one.predicted_s for one in mine)
        print(
            f"{kind.name}: {rates[kind.name]:.3f} tasks/s, {wall:.2f} s, "
            f"simulated {predicted:.2f} s ({predicted / wall - 1:+.1%})"
        )
    print(f"two stages / two copies: {rates['2 stages'] / rates['2 copies']:.3f}")
    print(f"two copies / one stage:  {rates['2 copies'] / rates['1 stage']:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    plan = make_plan(1, options.blocks)
    num_tasks = sum(1 for _ in plan.schedule.tasks())
    print(
        f"{platform.machine()} CPU, {os.cpu_count()} cores, torch {torch.__version__}; "
        f"dim {ARCH.dit.dim}, {ARCH.dit.num_layers} layers, {num_tasks} tasks, "
        f"{options.runs} runs in turn"
    )
    outcomes: dict[str, list[Outcome]] = {kind.name: [] for kind in KINDS}
    disconnect: Callable[[], None] = connect("local")
    try:
        gauges = [ray.remote(num_cpus=0)(Gauge).remote() for _ in range(2)]
        for i in range(options.runs):
            for kind in KINDS if i % 2 == 0 else KINDS[::-1]:
                load, mine = os.getloadavg()[0], gauges[: kind.processes]
                before = measured(mine, plan)
                rate, wall = run(kind, options.blocks)
                seconds = mean(before + measured(mine, plan))
                predicted = predict(kind, options.blocks, seconds)
                outcomes[kind.name].append(Outcome(rate, wall, predicted))
                print(
                    f"{kind.name}: {rate:.3f} tasks/s, {wall:.2f} s, simulated {predicted:.2f} s "
                    f"({predicted / wall - 1:+.1%}), load {load:.1f}",
                    flush=True,
                )
    finally:
        disconnect()
    report(outcomes, num_tasks)


if __name__ == "__main__":
    main()
