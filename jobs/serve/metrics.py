"""What Prometheus reads of a server: its queue, what it makes, what it sends."""

import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .record import STATES

if TYPE_CHECKING:
    from .keeper import Keeper
    from .queue import Queue

T = TypeVar("T", bytes, str)

_FIRST_S = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """Counts itself what passes by; the rest is read when it is asked for."""

    def __init__(self) -> None:
        self._registry = here = CollectorRegistry()
        self._renders = Gauge("longreel_renders", "By state", ["state"], registry=here)
        self._queue = Gauge("longreel_queue_length", "Renders that wait", registry=here)
        self._waited = Gauge(
            "longreel_queue_oldest_seconds", "Of those that have yet to begin", registry=here
        )
        self._busy = Gauge("longreel_workers_busy", "Renders being made", registry=here)
        self._idle = Gauge(
            "longreel_stage_idle_ratio",
            "Of a stage's time since its render began",
            ["render", "stage"],
            registry=here,
        )
        self.frames = Counter("longreel_frames", "Frames that became final", registry=here)
        self.blocks = Counter("longreel_blocks", "Blocks that became final", registry=here)
        self.recoveries = Counter(
            "longreel_recoveries", "Times that a render went on after a loss", registry=here
        )
        self.ended = Counter("longreel_renders_ended", "By state", ["state"], registry=here)
        self.first_frame = Histogram(
            "longreel_first_frame_seconds",
            "From a render's start to its first segment",
            buckets=_FIRST_S,
            registry=here,
        )
        self.gpu_seconds = Histogram(
            "longreel_render_gpu_seconds",
            "Time of a render on its devices",
            buckets=_FIRST_S,
            registry=here,
        )
        self._bytes = Counter("longreel_sent_bytes", "To readers", ["way"], registry=here)
        self._readers = Gauge("longreel_readers", "Connected", ["way"], registry=here)

    def text(self, queue: "Queue", keeper: "Keeper") -> bytes:
        counts = queue.counts()
        for state in STATES:
            self._renders.labels(state).set(counts.get(state, 0))
        self._queue.set(counts.get("queued", 0))
        since = queue.waits_since()
        self._waited.set(0 if since is None else time.time() - since)
        self._busy.set(len(keeper.live))
        self._idle.clear()
        for render, live in keeper.live.items():
            for stage in range(live.record.request["stages"]):
                if (busy := live.busy(stage)) is not None:
                    self._idle.labels(render, stage).set(1 - busy)
        return generate_latest(self._registry)

    def sent(self, way: str, count: int) -> None:
        self._bytes.labels(way).inc(count)

    async def counted(self, stream: AsyncIterator[T], way: str) -> AsyncIterator[T]:
        """The same, one reader of this way more as long as it goes on."""
        readers, sent = self._readers.labels(way), self._bytes.labels(way)
        readers.inc()
        try:
            async for item in stream:
                sent.inc(len(item))
                yield item
        finally:
            readers.dec()
