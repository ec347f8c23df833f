"""What the queue knows of a render, besides what its folder says."""

from dataclasses import dataclass
from typing import Any, Literal

State = Literal["queued", "running", "paused", "done", "failed", "cancelled"]
STATES: tuple[State, ...] = ("queued", "running", "paused", "done", "failed", "cancelled")
OVER: frozenset[State] = frozenset({"done", "failed", "cancelled"})

Wish = Literal["", "pause", "cancel"]  # what a running render has been asked for


@dataclass(frozen=True, kw_only=True)
class NewRender:
    """An accepted request, before it has a place in the queue."""

    render: str  # its id, and the name of its folder
    client: str
    request: dict[str, Any]  # as the API took it, with every default filled in
    digest: str  # of the request: the same words, the same digest
    priority: int = 0
    deadline_at: float | None = None
    idempotency_key: str | None = None
    parent: str | None = None  # the render it was made from
    room_bytes: int = 0  # that it may take of the disk


@dataclass(frozen=True, kw_only=True)
class Record:
    """A render in the queue, as it was when it was read."""

    number: int  # in the order of acceptance; pages are cut by it
    render: str
    client: str
    request: dict[str, Any]
    state: State
    wish: Wish
    priority: int
    created_at: float
    started_at: float | None
    ended_at: float | None
    deadline_at: float | None
    attempts: int  # processes that were lost over it, and the one that is at it
    gpu_seconds: float
    error: dict[str, str] | None  # code and message
    parent: str | None

    @property
    def model(self) -> str:
        """What a worker holds in memory for it."""
        preset: str = self.request["preset"]
        return preset

    @property
    def over(self) -> bool:
        return self.state in OVER
