"""Devices of a Ray cluster for the stages of one render: granted together, or refused in words."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.placement_group import placement_group_table as _table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

_ray = cast(Any, ray)  # some of its functions have no types
_POLL_S = 0.02
_WORKER_GPU = 0.25  # of a GPU that a stage has the rest of: decoding shares it


@dataclass(frozen=True)
class Placement:
    """One bundle per stage, all on one kind of device."""

    group: PlacementGroup
    num_stages: int
    device: str  # "cuda" or "cpu"

    def stage_options(self, bundle: int) -> dict[str, Any]:
        if self.device == "cuda":
            return {"num_cpus": 0, "num_gpus": 1 - _WORKER_GPU, **self._in(bundle)}
        return {"num_cpus": 1, **self._in(bundle)}

    def worker_options(self, bundle: int) -> dict[str, Any]:
        gpus = {"num_gpus": _WORKER_GPU} if self.device == "cuda" else {}
        return {"num_cpus": 0, **gpus, **self._in(bundle)}

    def remove(self) -> None:
        remove_placement_group(self.group)

    def _in(self, bundle: int) -> dict[str, Any]:
        strategy = PlacementGroupSchedulingStrategy(self.group, bundle)
        return {"scheduling_strategy": strategy}


def place(
    num_stages: int,
    device: str,
    *,
    timeout_s: float,
    may_grow: bool,
    check: Callable[[], None] = lambda: None,
) -> Placement:
    """Wait for a device per stage; ValueError says what is missing.

    `device` is model.device: auto takes GPUs if the cluster has any. A cluster that cannot grow is
    not waited for when it is too small. `check` is called now and then and may raise.
    """
    kind = _kind(device, num_stages)
    resource = "GPU" if kind == "cuda" else "CPU"
    if not may_grow and _total(resource) < num_stages:
        raise ValueError(_missing(num_stages, resource, "cannot be placed"))
    group = placement_group([{resource: 1.0}] * num_stages, strategy="PACK")
    deadline = time.monotonic() + timeout_s
    try:
        while _table(group)["state"] != "CREATED":
            check()
            if time.monotonic() > deadline:
                raise ValueError(
                    _missing(
                        num_stages,
                        resource,
                        f"could not be placed within parallel.place_timeout_s={timeout_s:g}",
                    )
                )
            time.sleep(_POLL_S)
    except BaseException:
        remove_placement_group(group)
        raise
    return Placement(group, num_stages, kind)


def _kind(device: str, num_stages: int) -> str:
    if device.startswith("cuda:"):
        raise ValueError(
            f"model.device={device} names one GPU, and with parallel.backend=ray each of "
            f"{num_stages} stages is given its own; set model.device=cuda"
        )
    if device == "auto":
        return "cuda" if _total("GPU") else "cpu"
    return device


def _total(resource: str) -> int:
    return int(_ray.cluster_resources().get(resource, 0))


def _missing(num_stages: int, resource: str, how: str) -> str:
    total = _total(resource)
    free = int(_ray.available_resources().get(resource, 0))
    nodes = sum(bool(node["Alive"]) for node in _ray.nodes())
    text = (
        f"parallel.num_stages={num_stages} asks for {num_stages} x {{{resource}: 1}}, which {how}: "
        f"the cluster has {total} {resource}{'s' * (total != 1)} on {nodes} "
        f"node{'s' * (nodes != 1)}, {free} of them free; "
    )
    if total >= num_stages:
        return text + "wait for other renders to end, or raise parallel.place_timeout_s"
    if total:
        return text + f"set parallel.num_stages={total}, or add nodes"
    return text + "add nodes that have some" + (", or set model.device=cpu" * (resource == "GPU"))
