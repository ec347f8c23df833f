"""What a schedule comes to on a number of stages: time to the first block, idle stages, bytes."""

from dataclasses import dataclass
from itertools import accumulate

from ..parallel.tasks import Key
from .cost import Cost
from .schedule import BlockSchedule
from .timeline import Timeline, play


@dataclass(frozen=True, kw_only=True)
class Report:
    """In seconds, or in slots where the cost is the unit's. Tuples have a value per device: per
    stage, the conditional chain's first where each branch of guidance has one."""

    num_stages: int  # of a chain
    num_devices: int
    num_blocks: int
    num_tasks: int
    total_s: float  # until the last block is decoded
    first_block_s: float  # until block 0 is denoised
    first_frame_s: float  # until its first latent is decoded, too
    frames_per_s: float  # of the whole render
    steady_frames_per_s: float  # what the busiest stage allows
    late_s: float  # of the latest block, played from the first one on at the steady rate
    idle_share: tuple[float, ...]  # filling and draining included
    stall_s: tuple[float, ...]  # filling and draining not included
    peak_bytes: tuple[int, ...]  # weights, caches, windows on their way, latents
    hop_bytes: int  # of the largest window between two stages, in one pass
    sent_bytes: int  # between two neighbouring stages, in all
    branch_bytes: int  # between two chains: windows there, predictions back, in all


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The same in slots: every task takes one on every stage, and nothing else takes time."""

    total_slots: int
    idle_slots: int  # of each stage, filling and draining included
    stall_slots: int  # not included
    first_block_slots: int
    late_slots: int


def simulate(schedule: BlockSchedule, num_stages: int, cost: Cost) -> Report:
    return measure(play(schedule, num_stages, cost))


def count_slots(schedule: BlockSchedule, num_stages: int) -> Slots:
    report = simulate(schedule, num_stages, Cost(num_layers=num_stages))
    total = round(report.total_s)
    return Slots(
        total_slots=total,
        idle_slots=total - report.num_tasks,
        stall_slots=round(max(report.stall_s)),
        first_block_slots=round(report.first_block_s),
        late_slots=round(report.late_s),
    )


def measure(timeline: Timeline) -> Report:
    t, cost = timeline, timeline.cost
    stages = range(t.num_devices)
    busy = [sum(v.stop - v.start for row in t.visits for v in row[s]) for s in stages]
    ends = denoised_times(t)
    decoded = _decoded_times(t, ends)
    total = max(decoded[-1], *t.stops[-1])
    num_latents = t.schedule.num_latents
    assert num_latents is not None
    decoding = num_latents * cost.seconds.decode_latent
    per_latent = max(*busy, decoding) / num_latents
    hops = [cost.activation_bytes(task) for task in t.tasks] if t.num_stages > 1 else [0]
    crossing = sum(cost.window_bytes(task) + cost.prediction_bytes(task) for task in t.tasks)
    return Report(
        num_stages=t.num_stages,
        num_devices=t.num_devices,
        num_blocks=len(ends),
        num_tasks=len(t.tasks),
        total_s=total,
        first_block_s=ends[0],
        first_frame_s=ends[0] + cost.seconds.decode_latent,
        frames_per_s=(1 + (num_latents - 1) * cost.frames_per_latent) / total,
        steady_frames_per_s=cost.frames_per_latent / per_latent,
        late_s=_lateness(t, decoded, per_latent),
        idle_share=tuple(1 - busy[s] / total for s in stages),
        stall_s=tuple(t.stops[-1][s] - t.starts[0][s] - busy[s] for s in stages),
        peak_bytes=tuple(_peak_bytes(t, s) for s in stages),
        hop_bytes=max(hops),
        sent_bytes=cost.passes * sum(hops),
        branch_bytes=crossing * (cost.branches - 1),
    )


def denoised_times(timeline: Timeline) -> list[float]:
    """When each block is clean and may leave, which it does in order."""
    times = {}
    for task, home in zip(timeline.tasks, timeline.home, strict=True):
        times.update(dict.fromkeys(task.finishes, home))
    return list(accumulate((times[block] for block in sorted(times)), max))


def _decoded_times(timeline: Timeline, denoised: list[float]) -> list[float]:
    """One decoder takes the blocks in turn, beside the stages."""
    free, times = 0.0, []
    for block, ready in enumerate(denoised):
        start, stop = timeline.schedule.bounds(block)
        free = max(free, ready) + (stop - start) * timeline.cost.seconds.decode_latent
        times.append(free)
    return times


def _lateness(timeline: Timeline, decoded: list[float], per_latent: float) -> float:
    """Played from when block 0 is there, each block must be there when the one before has ended."""
    starts = (timeline.schedule.bounds(block)[0] for block in range(len(decoded)))
    due = (decoded[0] + start * per_latent for start in starts)
    return max(time - limit for time, limit in zip(decoded, due, strict=True))


def _peak_bytes(timeline: Timeline, stage: int) -> int:
    """Most that a stage holds at once."""
    changes: list[tuple[float, int]] = []
    for start, stop, size in [
        *_windows(timeline, stage),
        *_caches(timeline, stage),
        *_latents(timeline, stage),
    ]:
        changes += [(start, size), (stop, -size)]
    held = accumulate(size for _, size in sorted(changes))  # at one moment, what leaves goes first
    return timeline.cost.weights_bytes(timeline.layers[stage]) + max(held, default=0)


_Span = tuple[float, float, int]  # from, to, bytes


def _windows(timeline: Timeline, stage: int) -> list[_Span]:
    """Inputs from their arrival until they are used, outputs until the next stage has them."""
    t, spans = timeline, []
    first, last = stage == t.num_stages, (stage + 1) % t.num_stages == 0  # of the other; of its own
    for i, task in enumerate(t.tasks):
        size = t.cost.activation_bytes(task)
        for passing, visit in enumerate(t.visits[i][stage]):
            if stage:
                came = t.cost.window_bytes(task) if first else size
                spans.append((visit.arrival, visit.stop, came))
            left = visit.stop if last else t.visits[i][stage + 1][passing].arrival
            spans.append((visit.start, left, size))
    return spans


def _caches(timeline: Timeline, stage: int) -> list[_Span]:
    t = timeline
    unit = t.cost.sizes.cached_token * t.cost.tokens_per_latent * len(t.layers[stage])
    held: dict[Key, tuple[float, int]] = {}
    spans = []
    for i, task in enumerate(t.tasks):
        for entry in task.stores:
            held[entry.key] = t.starts[i][stage], unit * entry.num_latents
        for key in task.frees:
            start, size = held.pop(key)
            spans.append((start, t.stops[i][stage], size))
    return spans + [(start, t.stops[-1][stage], size) for start, size in held.values()]


def _latents(timeline: Timeline, stage: int) -> list[_Span]:
    """The first stage holds blocks until nobody reads them, the last what the solver remembers."""
    t, spans = timeline, []
    begun: dict[int, float] = {}
    for i, task in enumerate(t.tasks):
        for block in task.admits:
            begun[block] = t.starts[i][stage]
        for block in task.drops if stage == 0 else ():
            spans.append((begun[block], t.stops[i][0], _block(t, block) * t.cost.sizes.latent))
        for block in task.finishes if stage + 1 == t.num_stages else ():
            size = _block(t, block) * t.cost.sizes.solver
            spans.append((begun[block], t.stops[i][stage], size))
    return spans


def _block(timeline: Timeline, block: int) -> int:
    start, stop = timeline.schedule.bounds(block)
    return stop - start
