"""What running a task costs beside the model: a chain whose model, windows and solver do nothing.

    python benchmarks/overhead.py                     # in process, then over Ray, 1, 2 and 4 stages
    python benchmarks/overhead.py --blocks 200

Per block-step, in steady state: schedule, messages, links, the ring, and news for the coordinator.
Over Ray also: seconds from nothing to the first task, on a cluster started for it.
"""

import argparse
import logging
import os
import platform
import statistics
import time
from collections.abc import Sequence
from contextlib import closing

import ray
import torch
from torch import Tensor

from longreel.configs.parallel import ParallelConfig
from longreel.models.protocol import DiTState, LayerCache, Modulation, WindowShape
from longreel.parallel.chain import Chain, Done, LocalChain
from longreel.parallel.crew import Crew
from longreel.parallel.layout import make_layout
from longreel.parallel.placement import place
from longreel.parallel.ray_chain import ChainParts, Devices, RayChain
from longreel.parallel.split import split_layers
from longreel.parallel.stage import Inputs, Moved, Stage
from longreel.parallel.tasks import Task, WalkState
from longreel.pipeline.schedule import BlockSchedule

LAYERS = 8
LATENTS = torch.zeros(1, 16, 4, 2, 2)
EMPTY = torch.zeros(1, 1, 8)
STEPS = 10


class NoModel:
    num_layers = LAYERS

    def embed(self, latents_BCTHW: Tensor, *rest: object, **more: object) -> DiTState:
        levels = Modulation(embedding_RD=EMPTY[0], rows_R6D=EMPTY, index_BF=None)
        window = WindowShape(times=(0,), context_times=(), height=1, width=1, causal_latents=0)
        return DiTState(
            tokens_BLD=EMPTY, modulation=levels, text_BSD=EMPTY, image_BND=None, window=window
        )

    def run_layers(
        self, state: DiTState, layers: range, cache: LayerCache | None = None, **more: object
    ) -> DiTState:
        return state

    def head(self, state: DiTState) -> Tensor:
        return LATENTS


class NoWindows:
    """Versions that have come round, without their latents."""

    def __init__(self) -> None:
        self._versions: dict[int, int] = {}
        self._inputs = Inputs(
            latents_BCTHW=LATENTS,
            timesteps_BT=torch.zeros(1, 1),
            texts_BSD=(EMPTY,),
            image_BND=None,
            expert=0,
            causal_latents=0,
            fps=16,
        )

    def ready(self, task: Task) -> bool:
        return all(
            part.step == 0 or self._versions.get(part.block) == part.step for part in task.parts
        )

    def inputs(self, task: Task) -> Inputs:
        for block in task.drops:
            self._versions.pop(block, None)
        return self._inputs

    def put(self, moved: Moved) -> None:
        self._versions[moved.block] = moved.step

    def admit(self, stop: int) -> None:
        pass

    def begins_prompt(self, block: int) -> bool:
        return False

    def change_text(self, text: object) -> int:
        raise AssertionError("nobody asks for it")

    def held(self) -> dict[int, tuple[int, Tensor]]:
        return {}

    def restore(self, walk: WalkState, held: object) -> None:
        raise AssertionError("nothing fails")


class NoSolver:
    def step(self, task: Task, velocities_BCTHW: Sequence[Tensor]) -> list[Moved]:
        return [
            Moved(block=part.block, step=part.step + 1, latents_BCTHW=LATENTS)
            for part in task.written
        ]

    def held(self) -> dict[int, tuple[Tensor, ...]]:
        return {}

    def restore(self, held: object) -> None:
        raise AssertionError("nothing fails")


def no_model(expert: int) -> NoModel:
    return NoModel()


def stage(layers: range, device: str, shelf: object = None) -> Stage:
    return Stage(no_model, layers)


def windows(device: str) -> NoWindows:
    return NoWindows()


def solver(device: str) -> NoSolver:
    return NoSolver()


def milliseconds(chain: Chain, schedule: BlockSchedule) -> tuple[float, float]:
    """A task's, once the chain is full; and seconds until the first is done."""
    begin = time.perf_counter()
    num_tasks = sum(1 for _ in schedule.tasks())
    first, start, seen = 0.0, 0.0, 0
    with closing(chain.run(schedule)) as done:
        for one in done:
            seen += 1
            if seen == 1:
                first = time.perf_counter() - begin
            assert isinstance(one, Done)
            if one.finished and not start:
                start, before = time.perf_counter(), seen
    return 1000 * (time.perf_counter() - start) / (num_tasks - before), first


def in_process(num_stages: int, schedule: BlockSchedule) -> float:
    stages = [stage(layers, "cpu") for layers in split_layers(LAYERS, num_stages)]
    return milliseconds(LocalChain(stages, NoWindows(), NoSolver()), schedule)[0]


def over_ray(num_stages: int, schedule: BlockSchedule) -> tuple[float, float, float]:
    begin = time.perf_counter()
    ray.init(
        address="local",
        num_cpus=num_stages,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=100 * 2**20,
    )
    try:
        layout = make_layout(ParallelConfig(num_stages=num_stages))
        placement = place(layout, "cpu", timeout_s=60, may_grow=False)
        chain = RayChain(
            Devices(
                crew=Crew(placement),
                slices=split_layers(LAYERS, num_stages),
                device=placement.device,
            ),
            ChainParts(stage=stage, windows=windows, stepper=solver),
            timeout_s=60,
        )
        per_task, first = milliseconds(chain, schedule)
        return per_task, time.perf_counter() - begin, first
    finally:
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--blocks", type=int, default=100)
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    torch.set_num_threads(1)
    schedule = BlockSchedule(
        size=4, steps=STEPS, num_latents=4 * args.blocks, max_inflight=STEPS, left=4
    )
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"ray {ray.__version__}; {args.blocks} blocks of {STEPS} steps, medians of {args.runs}"
    )
    # before Ray, whose processes take a while to end
    local = {n: [in_process(n, schedule) for _ in range(args.runs)] for n in args.stages}
    for num_stages in args.stages:
        remote = [over_ray(num_stages, schedule) for _ in range(args.runs)]
        print(
            f"{num_stages} stages: in process {statistics.median(local[num_stages]):.3f} ms, "
            f"over ray {statistics.median(r[0] for r in remote):.3f} ms a block-step; first task "
            f"{statistics.median(r[2] for r in remote):.1f} s after placement, "
            f"render of nothing {statistics.median(r[1] for r in remote):.1f} s in all"
        )


if __name__ == "__main__":
    main()
