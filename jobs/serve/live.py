"""What is known of a running render besides its folder: gone with the process that runs it."""

import asyncio
import time
from dataclasses import dataclass, field

from .errors import ApiError, without_paths
from .pace import is_paced
from .record import Record
from .worker_link import News, Worker

# A process whose native code hangs still gives signs of life. Half an hour is longer than whatever
# else a render may wait for, but for devices: a full disk, a model that is loaded once more. Of two
# steps one may take many times the other: more is in sight, and guided in two passes.
_STILL_S = 1800.0
_PLACES = 3  # waits in a row: for the devices that are lost, for others, for processes on these
_TIMES_LONGEST = 30
_LOOK_S = 1.0


@dataclass
class Stage:
    """One kind of work: how much of it is done, since when."""

    done: int
    total: int
    note: str
    began: float  # monotonic, with `first` done by then
    first: int

    def eta_s(self) -> float | None:
        """At the pace so far."""
        fresh = self.done - self.first
        if fresh <= 0 or not self.total:
            return None
        return max(0, self.total - self.done) * (time.monotonic() - self.began) / fresh


@dataclass
class Live:
    record: Record
    since: float  # monotonic
    worker: Worker | None = None  # none: yet to start
    stages: dict[str, Stage] = field(default_factory=dict)
    prompts: dict[int, asyncio.Future[News]] = field(default_factory=dict)
    # the change that was asked for last: its reader's number, if it has one, and what came of it
    newest: tuple[int | None, str, asyncio.Future[News]] | None = None
    seen: int = 0  # segments
    busy_s: list[float] = field(default_factory=list)  # by stage
    still_s: float = 0.0  # since the last news of progress
    longest_s: float = 0.0  # between two of them
    taken: int = 0  # frames that a reader has, of a render that is paced by it
    taken_at: float = 0.0  # monotonic

    @property
    def paced(self) -> bool:
        return is_paced(self.record.request)

    def tell_taken(self) -> None:
        """Where there is a process that waits for it."""
        if self.taken and self.worker is not None:
            self.worker.tell("taken", frames=self.taken)

    async def change_prompt(self, number: int, prompt: str, asked: int | None) -> bool:
        """As the keeper does, under a number that no other change has."""
        if self.worker is None:
            raise ApiError(409, "not_running", "the prompt of a render changes while it runs")
        if (answer := self._asked_again(asked, prompt)) is None:
            repeated, answer = False, asyncio.get_running_loop().create_future()
            self.newest, self.prompts[number] = (asked, prompt, answer), answer
            self.worker.tell("prompt", number=number, prompt=prompt)
        else:
            repeated = True
        news = await asyncio.shield(answer)  # which comes though the reader may leave
        if "error" in news:
            said = without_paths(news["error"])
            raise ApiError(409, "prompt_not_changed", said, field="prompt")
        return repeated

    def _asked_again(self, number: int | None, prompt: str) -> "asyncio.Future[News] | None":
        """What comes, or came, of this change, if it is the newest, sent again, and no error."""
        if number is None or self.newest is None or self.newest[:2] != (number, prompt):
            return None
        answer = self.newest[2]
        return None if answer.done() and "error" in answer.result() else answer

    def answer_prompt(self, news: News) -> None:
        if answer := self.prompts.pop(news["number"], None):
            answer.set_result(news)

    def end_prompts(self) -> None:
        """Nobody changes them any more."""
        while self.prompts:
            _, answer = self.prompts.popitem()
            answer.set_result({"error": "the render ended before its prompt was changed"})

    def stands_still(self, seconds: float) -> bool:
        """At another look, so long after the last: whether nothing has moved for longer than any
        step takes. Of a step nobody knows how long it takes before one was taken."""
        self.still_s += min(seconds, _LOOK_S)  # a server that was stopped itself has looked once
        steps = self.stages.get("denoise")
        knows = steps is not None and steps.done > steps.first
        waits_s = _PLACES * self.record.request.get("place_timeout_s", 0.0)  # none: an earlier one
        return knows and self.still_s > max(_STILL_S + waits_s, _TIMES_LONGEST * self.longest_s)

    def note(self, news: News) -> None:
        """Progress, as the worker tells it."""
        self.longest_s, self.still_s = max(self.longest_s, self.still_s), 0.0
        what, done, total = news["what"], news["done"], news["total"]
        stage = self.stages.get(what)
        if stage is None:
            stage = self.stages[what] = Stage(done, total, "", time.monotonic(), done)
        self.busy_s = news.get("busy_s", self.busy_s)
        stage.done, stage.total, stage.note = done, total, news["note"]

    @property
    def in_flight(self) -> dict[str, int]:
        """Blocks that are being made, and the steps they have taken."""
        stage = self.stages.get("denoise")
        pairs = (pair.split(":") for pair in stage.note.split()) if stage else ()
        return {block: int(step) for block, step in pairs}

    def done_fraction(self) -> float:
        """Of the denoising."""
        stage = self.stages.get("denoise")
        return stage.done / stage.total if stage and stage.total else 0.0

    def busy(self, stage: int) -> float | None:
        """Share of the time since the chain began that this stage has computed."""
        if stage >= len(self.busy_s) or "denoise" not in self.stages:
            return None
        elapsed = time.monotonic() - self.stages["denoise"].began
        return min(1.0, self.busy_s[stage] / elapsed) if elapsed > 0 else None

    def eta_s(self) -> float | None:
        ways = [self.stages[what].eta_s() for what in ("denoise", "decode") if what in self.stages]
        known = [eta for eta in ways if eta is not None]
        return max(known) if known else None
