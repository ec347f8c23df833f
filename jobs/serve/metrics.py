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
        self._registry = CollectorRegistry()
        kinds = {"registry": self._registry, "namespace": "longreel"}
        self._renders = Gauge("renders", "Renders by state", ["state"], **kinds)
        self._queue = Gauge("queue_length", "Renders that wait for their turn", **kinds)
        self._waited = Gauge("queue_oldest_seconds", "How long the first of them waits", **kinds)
        self._workers = Gauge("workers_busy", "Renders that are being made", **kinds)
        self._idle = Gauge(
            "stage_idle_ratio", "Of a stage's time since its render began", ["stage"], **kinds
        )
        self.frames = Counter("frames", "Frames that became final", **kinds)
        self.blocks = Counter("blocks", "Blocks that became final", **kinds)
        self.recoveries = Counter("recoveries", "Renders that went on after a loss", **kinds)
        self.ended = Counter("renders_ended", "Renders that ended", ["state"], **kinds)
        self.first_frame = Histogram(
            "first_frame_seconds", "From its start to its first segment", buckets=_FIRST_S, **kinds
        )
        self.gpu_seconds = Histogram(
            "render_gpu_seconds", "Device time of a render", buckets=_FIRST_S, **kinds
        )
        self._bytes = Counter("sent_bytes", "Bytes sent to readers", ["way"], **kinds)
        self._readers = Gauge("readers", "Readers that are connected", ["way"], **kinds)

    def text(self, queue: "Queue", keeper: "Keeper") -> bytes:
        counts = queue.counts()
        for state in STATES:
            self._renders.labels(state).set(counts.get(state, 0))
        self._queue.set(counts.get("queued", 0))
        waiting = queue.with_state("queued")
        self._waited.set(time.time() - min(r.created_at for r in waiting) if waiting else 0)
        self._workers.set(len(keeper.live))
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
