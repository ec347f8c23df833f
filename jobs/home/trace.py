"""A render's journal as a Chrome trace: attempts, segments, checkpoints and how busy each stage
was, on a line of time."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .journal import Event, JournalReader

_US = 1e6


def write_trace(folder: Path, path: Path) -> int:
    """Open it in chrome://tracing or Perfetto. The number of its spans."""
    events = JournalReader(folder / "journal").poll()
    spans = [*make_spans(events)]
    path.write_text(json.dumps({"traceEvents": spans, "displayTimeUnit": "ms"}), encoding="utf-8")
    return len(spans)


def make_spans(events: Sequence[Event]) -> Iterator[dict[str, Any]]:
    """Of each attempt a span; in it a span per segment, from when the one before was final."""
    begun: dict[int, float] = {}
    since: dict[int, float] = {}
    last: dict[int, float] = {}
    before: dict[int, list[float]] = {}  # seconds that each stage had worked by the last segment
    for event in events:
        attempt, now, kind = event["attempt"], event["time"], event["event"]
        begun.setdefault(attempt, now)
        start = since.setdefault(attempt, now)
        last.setdefault(attempt, now)
        if kind not in ("edit", "dropped"):  # between two attempts, under the number of the first
            last[attempt] = now
        if kind == "segment":
            low, high = event["blocks"]
            facts = {name: event[name] for name in ("number", "first", "frames", "bytes")}
            yield _span(f"blocks {low} to {high - 1}", "segments", attempt, start, now, facts)
            if busy_s := event.get("busy_s"):
                yield from _busy(attempt, start, now, before.get(attempt), busy_s)
                before[attempt] = busy_s
            since[attempt] = now
        elif kind != "started":
            facts = {k: v for k, v in event.items() if k not in ("event", "time", "attempt")}
            yield {
                "name": kind,
                "ph": "i",
                "s": "p",
                "ts": round(now * _US),
                "pid": attempt,
                "tid": "events",
                "args": facts,
            }
    for attempt, start in begun.items():
        yield _span(f"attempt {attempt}", "attempts", attempt, start, last[attempt], {})


def _busy(
    attempt: int, start: float, now: float, before: list[float] | None, busy_s: list[float]
) -> Iterator[dict[str, Any]]:
    """Each stage's share of the time since the last segment; one replaced since began at 0."""
    for stage, seconds in enumerate(busy_s):
        was = before[stage] if before and len(before) == len(busy_s) else 0.0
        worked = seconds - was if seconds >= was else seconds
        yield {
            "name": f"stage {stage}",
            "ph": "C",
            "ts": round(start * _US),
            "pid": attempt,
            "args": {"busy": round(min(1.0, worked / max(now - start, 1e-6)), 4)},
        }


def _span(
    name: str, row: str, attempt: int, start: float, stop: float, facts: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name,
        "ph": "X",
        "ts": round(start * _US),
        "dur": max(0, round((stop - start) * _US)),  # a clock may have been set back
        "pid": attempt,
        "tid": row,
        "args": facts,
    }
