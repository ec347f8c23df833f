"""Devices of a Ray cluster for the stages of one render: granted together, or refused in words."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.placement_group import placement_group_table as _table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ..configs.checks import counted
from ..configs.parallel import ParallelConfig
from .errors import ChainBroken
from .layout import Layout

_ray = cast(Any, ray)  # some of its functions have no types
_POLL_S = 0.02
_SETTLED_S = 1.0  # Ray's count of free devices is as old as that at most
_WORKER_GPU = 0.25  # of a GPU that a stage has the rest of: decoding shares it


@dataclass(frozen=True)
class Placement:
    """A bundle for each line of devices that exchange heads, which keeps it on one node."""

    group: PlacementGroup
    layout: Layout
    device: str  # "cuda" or "cpu"

    def stage_options(self, device: int) -> dict[str, Any]:
        if self.device == "cuda":
            return {"num_cpus": 0, "num_gpus": 1 - _WORKER_GPU, **self._in(device)}
        return {"num_cpus": 1, **self._in(device)}

    def worker_options(self, device: int) -> dict[str, Any]:
        gpus = {"num_gpus": _WORKER_GPU} if self.device == "cuda" else {}
        return {"num_cpus": 0, **gpus, **self._in(device)}

    def is_whole(self) -> bool:
        """Whether every bundle has a device: not after a node is gone, until another is there."""
        return str(_table(self.group)["state"]) == "CREATED"

    def is_there(self, device: int) -> bool:
        """Whether its node is, as far as the cluster knows by now."""
        nodes = _table(self.group)["bundles_to_node_id"]
        alive = {node["NodeID"] for node in _ray.nodes() if node["Alive"]}
        return nodes.get(self._bundle(device)) in alive

    @property
    def has_cluster(self) -> bool:
        """Whether this process is still on one."""
        return bool(_ray.is_initialized())

    def remove(self) -> None:
        remove_placement_group(self.group)

    def _bundle(self, device: int) -> int:
        return device // self.layout.mesh.ulysses

    def _in(self, device: int) -> dict[str, Any]:
        strategy = PlacementGroupSchedulingStrategy(self.group, self._bundle(device))
        return {"scheduling_strategy": strategy}


def place(
    layout: Layout,
    device: str,
    *,
    timeout_s: float,
    may_grow: bool,
    check: Callable[[], None] = lambda: None,
) -> Placement:
    """Wait for the devices of a layout; ValueError says what is missing.

    `device` is model.device: auto takes GPUs if the cluster has any. A cluster that cannot grow is
    not waited for when it is too small. `check` is called now and then and may raise.
    """
    kind = _kind(device, layout)
    resource = "GPU" if kind == "cuda" else "CPU"
    if not may_grow and not _could_fit(layout, resource):
        raise ValueError(_missing(layout, resource, "cannot be placed"))
    line = layout.mesh.ulysses
    bundles = [{resource: float(line)}] * (layout.num_devices // line)
    group = placement_group(bundles, strategy="PACK")
    deadline = time.monotonic() + timeout_s
    try:
        while _table(group)["state"] != "CREATED":
            check()
            if time.monotonic() > deadline:
                raise ValueError(
                    _missing(
                        layout,
                        resource,
                        f"could not be placed within parallel.place_timeout_s={timeout_s:g}",
                    )
                )
            time.sleep(_POLL_S)
    except BaseException:
        remove_placement_group(group)
        raise
    return Placement(group, layout, kind)


def this_node() -> str:
    """Its address as the others of the cluster reach it."""
    address: str = _ray.util.get_node_ip_address()
    return address


def find_fewer(
    parallel: ParallelConfig, kind: str, *, timeout_s: float, check: Callable[[], None]
) -> ParallelConfig:
    """The same work for the devices that are free: fewer stages, larger ones."""
    resource, line = "GPU" if kind == "cuda" else "CPU", parallel.gpus_per_stage // parallel.ring
    deadline, free, before = time.monotonic() + timeout_s, 0, -1
    while time.monotonic() < deadline and (free == 0 or free != before):  # until the count stands
        check()
        time.sleep(_SETTLED_S)
        before, free = free, _in_lines(_free(resource), line)
    if free == 0:
        left = sum(_free(resource))
        what = f"of the {left} {resource}s that are left no node has {line}, which exchange heads"
        raise ChainBroken(
            f"{what if left else f'no {resource} is left on the cluster'}, so the render cannot go "
            "on; add nodes, and resume it"
        )
    return fewer(parallel, free)


def fewer(parallel: ParallelConfig, free: int) -> ParallelConfig:
    """As much of it as so many devices can run."""
    if free >= parallel.num_devices:
        return parallel
    each = parallel.gpus_per_stage  # how a window is shared decides how sums round, so it stays
    if free < each:
        raise ChainBroken(
            f"{free} devices are left, and parallel.gpus_per_stage={each} shares every window "
            "among so many; add nodes, and resume the render"
        )
    chains = parallel.num_branches * each
    if parallel.cfg == "split" and free < chains:
        return replace(parallel, cfg="batch", num_stages=1, devices=0)
    if parallel.devices:
        return replace(parallel, devices=free - free % chains)
    return replace(parallel, num_stages=free // chains)


def _kind(device: str, layout: Layout) -> str:
    if device.startswith("cuda:"):
        raise ValueError(
            f"model.device={device} names one GPU, and with parallel.backend=ray the stages are "
            f"given {layout.num_devices} by the cluster; set model.device=cuda"
        )
    if device == "auto":
        return "cuda" if _total("GPU") else "cpu"
    return device


def _total(resource: str) -> int:
    return int(_ray.cluster_resources().get(resource, 0))


def _could_fit(layout: Layout, resource: str) -> bool:
    """Were all devices free."""
    return _in_lines(_each(resource), layout.mesh.ulysses) >= layout.num_devices


def _in_lines(counts: Sequence[int], line: int) -> int:
    """Of these devices of every node, those that stand in lines which exchange heads there."""
    return sum(count - count % line for count in counts)


def _free(resource: str) -> list[int]:
    """Of every node that is alive, as far as Ray has counted."""
    nodes = _ray._private.state.available_resources_per_node().values()
    return [int(free.get(resource, 0)) for free in nodes]


def _each(resource: str) -> list[int]:
    """Of every node that is alive."""
    alive = [node for node in _ray.nodes() if node["Alive"]]
    return [int(node["Resources"].get(resource, 0)) for node in alive]


def _missing(layout: Layout, resource: str, how: str) -> str:
    total, wanted = _total(resource), layout.num_devices
    free = int(_ray.available_resources().get(resource, 0))
    nodes = sum(bool(node["Alive"]) for node in _ray.nodes())
    text = (
        f"{_asked(layout)} asks for {wanted} x {{{resource}: 1}}, which {how}: "
        f"the cluster has {counted(total, resource)} on {counted(nodes, 'node')}, "
        f"{free} of them free; "
    )
    if total >= wanted and not _could_fit(layout, resource):
        return text + (
            f"{layout.mesh.ulysses} of them exchange heads and must be on one node, and the "
            f"largest has {max(_each(resource))}; set parallel.ring so that fewer do, or use fewer"
        )
    if total >= wanted:
        return text + "wait for other renders to end, or raise parallel.place_timeout_s"
    if total:
        fit = _in_lines(_each(resource), layout.mesh.ulysses)
        return text + f"set {_fewer(layout, fit)}; or add nodes"
    return text + "add nodes that have some" + (", or set model.device=cpu" * (resource == "GPU"))


def _asked(layout: Layout) -> str:
    if layout.shared:
        return f"parallel.devices={layout.num_devices}"
    shares = f" of parallel.gpus_per_stage={layout.num_shares}" * (layout.num_shares > 1)
    split = " with parallel.cfg=split" * (layout.num_branches > 1)
    return f"parallel.num_stages={layout.num_stages}{shares}{split}"


def _fewer(layout: Layout, total: int) -> str:
    """Settings that make do with so many devices."""
    each = layout.num_branches * layout.num_shares
    even = total - total % each
    ways = [] if layout.shared or each > 1 else [f"parallel.num_stages={total}"]
    ways += [f"parallel.devices={even} (stages then share them)"] if even else []
    ways += ["parallel.cfg=batch"] if layout.num_branches > 1 else []
    ways += ["parallel.gpus_per_stage=1"] if layout.num_shares > 1 else []
    return ", or ".join(ways)
