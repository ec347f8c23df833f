"""What the routes of one server share."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from fastapi import Request, WebSocket
from fastapi.security import HTTPBearer

from ..home.home import is_name
from .edits import Editing
from .errors import ApiError
from .files import AllFiles
from .intake import Intake
from .keeper import Keeper
from .limits import Limits
from .metrics import Metrics
from .queue import Queue
from .record import Record
from .status import Status, Statuses
from .tokens import Tokens


@dataclass(kw_only=True)
class Context:
    queue: Queue
    files: AllFiles
    keeper: Keeper
    intake: Intake
    editing: Editing
    limits: Limits
    tokens: Tokens
    metrics: Metrics
    statuses: Statuses = field(default_factory=Statuses)
    ready: bool = False  # what checks a request is loaded
    began: float = field(default_factory=time.time)

    def check_after(self, render: str, client: str) -> None:
        """ApiError unless a list can go on after it: it may have been removed since the last page
        was read."""
        if self.queue.get(render) is not None or not is_name(render):
            self.record(render, client, "after")

    def record(self, render: str, client: str, field: str = "id") -> Record:
        """ApiError unless there is such a render, and it is this client's; `field` named it."""
        record = self.queue.get(render)
        if record is None or record.client != client:
            raise ApiError(404, "not_found", f"there is no render {render} of yours", field=field)
        return record

    async def at_hand(self, renders: Iterable[str]) -> None:
        """Their folders, before they are asked for: the journal of a long one takes a while to
        read, and the event loop that all clients share waits for none."""
        if cold := [render for render in renders if not self.files.has_read(render)]:
            await asyncio.to_thread(self.files.read_ahead, cold)

    def status(self, record: Record) -> Status:
        """How it stands, a moment ago at most."""
        return self.statuses.of(self, record)

    def again(self, record: Record) -> Record:
        """As it is now."""
        return self.queue.get(record.render) or record

    async def remove(self, own: Record) -> None:
        """Its place in the queue and its files, while nobody copies or edits them. ApiError while
        it runs."""
        async with self.intake.turn:
            if (record := self.queue.get(own.render)) is None:
                return  # another has done it
            if record.state == "running":
                raise ApiError(409, "running", "it is being made; cancel it first")
            if record.state == "queued":
                self.queue.pause(record.render)  # or it would begin meanwhile
            try:
                await asyncio.to_thread(self.files.remove, record.render)
            except Exception:
                if record.state == "queued":
                    self.queue.put_back(record.render, record.attempts)
                    self.keeper.wake()
                raise
            self.queue.remove(record.render)


# dependencies of routes are coroutines, as FastAPI would send plain functions to other threads


# for the document alone: the guard has looked at it before any route begins
bearer = HTTPBearer(
    auto_error=False, description="Where the server has tokens; where it has none, nothing."
)


async def context_of(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


def context_of_socket(socket: WebSocket) -> Context:
    context: Context = socket.app.state.context
    return context


async def client_of(request: Request) -> str:
    client: str = request.state.client
    return client
