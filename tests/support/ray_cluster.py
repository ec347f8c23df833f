"""What tests over a Ray cluster share: a backend that keeps its actors from render to render."""

import os
import time
from dataclasses import replace

from longreel.parallel.crew import Crew
from longreel.parallel.placement import place
from longreel.pipeline.backend import LocalBackend, RayBackend
from longreel.pipeline.codec import Codec


class WarmCrew(Crew):
    """A render does not end it."""

    def close(self):
        pass

    def end(self):
        super().close()


class WarmBackend(RayBackend):
    """Prompts are read here; stages are actors that outlive the render."""

    def __init__(self, plan, placement, crew, make_stage=None):
        self._plan, self._placement, self._crew = plan, placement, crew
        local = LocalBackend(plan)
        self.given_up = local.given_up
        self.texts, self.condition, self.decode = local.texts, local.condition, local.decode
        self.measured = Codec(plan).measured
        self._make_stage = make_stage

    def chain(self, sampling):
        chain = super().chain(sampling)
        if self._make_stage is not None:
            chain._parts = replace(chain._parts, stage=self._make_stage)
        self.last_chain = chain
        return chain

    def _check(self):
        pass

    def close(self):
        pass


class Warm:
    """A placement and its crew."""

    def __init__(self, num_stages):
        self.placement = place(num_stages, "cpu", timeout_s=20.0, may_grow=True)
        self.crew = WarmCrew(self.placement)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.crew.end()
        self.placement.remove()

    def backend(self, plan, make_stage=None):
        return WarmBackend(plan, self.placement, self.crew, make_stage)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"


def all_gone(pids, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while any(map(alive, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
