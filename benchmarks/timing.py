"""Calls timed in turn in one process: what benchmarks share."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch

_LEAST_S = 0.002  # on a GPU a shorter call is repeated: starting one takes some microseconds


def in_turn(
    calls: Mapping[str, Callable[[], object]], device: str, runs: int, budget_s: float = 1e9
) -> dict[str, float]:
    """Median seconds of a call each, in turn and back again, after one that is not counted.

    Fewer runs, at least one, where so many would take longer than the budget. On a CPU with one
    thread: of that thread, so that a core it has to share does not count.
    """
    for call in calls.values():
        call()  # compiles
    once = {name: _seconds(call, device, 1) for name, call in calls.items()}
    repeats = {
        name: max(1, round(_LEAST_S / took)) if device == "cuda" else 1
        for name, took in once.items()
    }
    a_round = sum(max(took, _LEAST_S) for took in once.values())
    times = {name: [took] for name, took in once.items()}
    for i in range(1, min(runs, int(budget_s / a_round))):
        order = list(calls.items())
        for name, call in order if i % 2 == 0 else order[::-1]:
            times[name].append(_seconds(call, device, repeats[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def machine(device: str, runs: int) -> str:
    """What a run was measured on, for its first line."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"
    threads = torch.get_num_threads()
    return f"{name}, {threads} threads, torch {torch.__version__}, at most {runs} runs in turn"


def _seconds(call: Callable[[], object], device: str, repeats: int) -> float:
    cuda = device == "cuda"
    clock = time.perf_counter if cuda or torch.get_num_threads() > 1 else time.thread_time
    if cuda:
        torch.cuda.synchronize()
    start = clock()
    for _ in range(repeats):
        call()
    if cuda:
        torch.cuda.synchronize()
    return (clock() - start) / repeats
