"""Consecutive stages in a process of their own: receive, run, send, task after task.

A plain class: crew.py makes it an actor. One thread runs the data loop; control calls come from
others and only count, take, or close. On the first stage a third thread brings the ring home.
"""

import os
import threading
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ..models.shelf import Shelf
from .chain import Schedule, Stepper, Windows
from .edges import Edges
from .front import Counters, Front
from .link import LinkClosed, LinkSpec, Receiver, Sender, open_receiver, open_sender
from .marks import Marked, Marks, Part
from .messages import (
    ActivationHeader,
    End,
    Idle,
    Mark,
    MovedHeader,
    Note,
    PredictionHeader,
    Skip,
    WindowHeader,
    pack_activation,
    pack_moved,
    pack_note,
    pack_prediction,
    pack_window,
    read_header,
    unpack_activation,
    unpack_moved,
    unpack_window,
)
from .outbox import Batch, Outbox
from .process import settle
from .sequence import Share, open_share
from .snapshot import EMPTY, Admission, CacheKey, PackedSnapshot
from .stage import Activation, Inputs, Moved, Stage, split_passes
from .tasks import Task, WalkState

_End = TypeVar("_End", Sender, Receiver)


class StageActor:
    """Nothing costly happens before `load`; then `join` and `run`, as often as need be.

    Several stages share an actor where they share a device: they take their turns on it anyway, so
    one hands its activation to the next, and only what leaves the device goes over a link.
    """

    def __init__(self) -> None:
        settle()
        self._shelf = Shelf()
        self._stages: list[Stage] = []
        self._device = torch.device("cpu")
        self._links: list[Sender | Receiver] = []
        self._front: Front | None = None
        self._task = -1
        self._share: Share | None = None

    def where(self) -> tuple[str, str, int]:
        """Node, GPU, process."""
        import ray

        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", [])
        return context.get_node_id(), ",".join(gpus), os.getpid()

    def load(self, builds: Sequence[Callable[[Shelf], Stage]], device: str) -> None:
        """Weights are read here, in the process that keeps them, and not twice for two renders."""
        settle()
        self._stages = []  # before the next ones take their memory
        self._device = torch.device(device)
        self._stages = [build(self._shelf) for build in builds]

    def join(
        self,
        edges: Edges,
        windows: Callable[[], Windows] | None,
        stepper: Callable[[], Stepper] | None,
        passes: range = range(2),
        start: PackedSnapshot | None = None,
    ) -> None:
        """Open this epoch's links; the first stage is given windows, the last a stepper.

        Of two branches, the conditional one's: the other's first and last stage send and receive.
        `passes`: those through the model that this stage runs. `start`: where the chain goes on.
        """
        settle()
        self._close_links()
        self._edges = edges
        self._front = None if windows is None else Front(windows(), edges.timeout_s / 4)
        self._stepper = None if stepper is None else stepper()
        self._passes = passes
        self._outbox = Outbox()
        self._marks = Marks()
        self._admission = Admission()
        self._walk = WalkState()
        self._velocities: tuple[Tensor, ...] = ()  # of the passes of a task so far
        self._share = open_share(edges.shards, edges.heads)
        for stage in self._stages:
            stage.join(self._share)
        self._restore(start)
        self._task = -1
        self._inlet, self._outlet = self._receiver(edges.inlet), self._sender(edges.outlet)
        self._ring, self._home = self._receiver(edges.ring), self._sender(edges.home)
        self._peers, self._forks = (
            [self._opened(open_sender(spec)) for spec in specs]
            for specs in (edges.peers, edges.forks)
        )
        self._merge_in = self._receiver(edges.merge_in)
        self._merge_out = self._sender(edges.merge_out)

    def run(self, schedule: Schedule | None, limit: int | None = None) -> None:
        """Every task: the first stage is given them all, the others hear of them from it.

        `limit`: blocks that may begin at all, if it was stopped in an earlier epoch.

        LinkClosed when a neighbour is lost or this stage is cut off. At a good end links stay open,
        until all stages have theirs: closing loses what is under way.
        """
        settle()
        try:
            if self._front is not None:
                assert schedule is not None
                self._admission.resume(self._walk.next_block, limit)
                self._lead(schedule, self._front)
            else:
                self._follow()
        except BaseException:
            self._close_links()
            raise
        finally:
            self._outbox.end()

    def take(self, wait_s: float) -> Batch:
        """Last stage: what is done since the last call."""
        return self._outbox.take(wait_s)

    def taken(self, count: int) -> None:
        """First stage: so many finished blocks have found their reader."""
        if self._front is not None:
            self._front.take(count)

    def stop(self) -> int:
        """First stage: admit no more blocks; what is in flight is finished. How many in all."""
        return self._admission.stop()

    def change_text(self, text: object) -> int:
        """First stage: the prompt of blocks that are yet to be admitted, and which is the first."""
        assert self._front is not None
        return self._front.change_text(text)

    def ask_mark(self, seen: int, wait_s: float) -> Marked | None:
        """First stage: its part of a snapshot that is newer than number `seen`."""
        return self._marks.ask(seen, wait_s)

    def collect(self, number: int, known: Collection[CacheKey], wait_s: float) -> Part:
        """This actor's part of that snapshot."""
        return self._marks.collect(number, known, wait_s)

    def cut(self) -> None:
        """`run` ends with LinkClosed, here and, as the links go, at every neighbour."""
        if self._front is not None:
            self._front.fail(LinkClosed("this stage was cut off"))
        self._close_links()

    def counters(self) -> Counters:
        return Counters(
            task=self._task,
            cache_bytes=sum(stage.cache_bytes() for stage in self._stages),
            busy_s=tuple(stage.busy_s for stage in self._stages),
            admitted=None if self._front is None else self._front.admitted(),
        )

    def _lead(self, schedule: Schedule, front: Front) -> None:
        """The first stage's loop: it alone walks through the schedule."""
        ring = threading.Thread(target=self._bring_home, args=(front,), name="ring", daemon=True)
        if self._ring is not None:
            ring.start()
        walk = schedule.walk(self._walk, self._admission.stopped, front.begins_prompt)
        tick = self._walk.tick
        for task in walk.tasks():
            if task.tick > tick and (number := self._marks.begin()):
                self._walk = walk.tick_start
                self._send_mark(number, front)
            tick = task.tick
            inputs = front.enter(task, self._say_idle)
            self._task = task.number
            self._run_window(task, self._own_part(task, inputs))
        self._pass_on(End(stamp=self._edges.stamp))
        if self._ring is not None:
            ring.join()  # until the end has come round, or the link is closed
            front.check()

    def _follow(self) -> None:
        """Every other stage's loop: the task comes with its window."""
        assert self._inlet is not None
        while True:
            message = self._inlet.recv()
            header = read_header(message, self._edges.stamp)
            if isinstance(header, ActivationHeader):
                self._task = header.task.number
                x = unpack_activation(header, message.tensors, self._device)
                del message  # its tensors, where the device has copies
                self._run_pass(header.task, x)
            elif isinstance(header, WindowHeader):
                self._task = header.task.number
                self._run_window(header.task, unpack_window(header, message.tensors, self._device))
            elif isinstance(header, Skip) and self._merge_out is not None:
                self._task = header.task
                self._merge_out.send(pack_prediction(self._edges.stamp, header.task, ()))
            else:
                assert isinstance(header, Note), header
                if isinstance(header, Mark):
                    self._note(header.number)
                self._pass_on(header)
            if isinstance(header, End):
                return

    def _own_part(self, task: Task, inputs: Inputs) -> Inputs:
        """The window, once the others have it: who shares this stage, and the unconditional
        branch its part, if it has stages of its own."""
        stamp, mine = self._edges.stamp, inputs
        if self._forks:
            mine, *others = split_passes(inputs)
            # for every task, here and onward, so that silence means a fault
            skip = pack_note(Skip(stamp=stamp, task=task.number))
            part = pack_window(stamp, task, others[0]) if others else skip
            for fork in self._forks:
                fork.send(part)
        for peer in self._peers:
            peer.send(pack_window(stamp, task, mine))
        return mine

    def _run_window(self, task: Task, inputs: Inputs) -> None:
        """Pass after pass: the next stage is at one while this stage is at another."""
        for passing in range(len(inputs.texts_BSD)):
            self._run_pass(task, self._loaded[0].embed(task, inputs, passing))

    def _run_pass(self, task: Task, x: Activation) -> None:
        for stage in self._loaded:
            x = stage.run(task, x)
        if self._outlet is not None:
            self._outlet.send(pack_activation(self._edges.stamp, task, x))
            return
        self._velocities += () if task.commit else self._loaded[-1].head(x)
        if not x.is_last:
            return
        velocities, self._velocities = self._velocities, ()
        if self._merge_out is not None:
            self._merge_out.send(pack_prediction(self._edges.stamp, task.number, velocities))
        elif self._stepper is not None:  # not on those whose results come together there
            self._finish(task, (*velocities, *self._other_velocities(task)))

    def _other_velocities(self, task: Task) -> list[Tensor]:
        """What the unconditional branch has made of the task, if it has stages of its own."""
        if self._merge_in is None:
            return []
        message = self._merge_in.recv()
        header = read_header(message, self._edges.stamp)
        assert isinstance(header, PredictionHeader), header
        assert header.task == task.number, f"{header} came for task {task.number}"
        return [tensor.to(self._device) for tensor in message.tensors]

    def _finish(self, task: Task, velocities_BCTHW: Sequence[Tensor]) -> None:
        assert self._stepper is not None
        moved: list[Moved] = []
        if not task.commit:
            moved = self._stepper.step(task, velocities_BCTHW)
        if self._home is not None:  # for every task, so that silence means a fault
            self._home.send(pack_moved(self._edges.stamp, task, moved))
        else:
            assert self._front is not None, "one stage is both ends"
            self._front.put(moved)
        self._outbox.add(task, moved)

    def _bring_home(self, front: Front) -> None:
        assert self._ring is not None
        try:
            while True:
                message = self._ring.recv()
                header = read_header(message, self._edges.stamp)
                if isinstance(header, MovedHeader):
                    front.put(unpack_moved(header, message.tensors, self._device))
                elif isinstance(header, Mark):
                    self._marks.complete(self._walk, front.end_mark(self._walk))
                elif isinstance(header, End):
                    return
        except BaseException as error:  # raised where the loop waits for what was to come
            front.fail(error)

    def _send_mark(self, number: int, front: Front) -> None:
        front.begin_mark()
        self._note(number)
        self._pass_on(Mark(stamp=self._edges.stamp, number=number))
        if self._ring is None:
            self._marks.complete(self._walk, front.end_mark(self._walk))

    def _note(self, number: int) -> None:
        caches = dict(pair for stage in self._loaded for pair in stage.pieces(self._passes))
        self._marks.note(number, self._stepper.held() if self._stepper else {}, caches)

    def _restore(self, start: PackedSnapshot | None) -> None:
        snapshot = start.unpack() if start else EMPTY
        self._walk = snapshot.walk
        for stage in self._loaded:
            stage.restore(snapshot.walk.entries, snapshot.caches, self._passes)
        if self._front is not None and start:
            self._front.restore(snapshot)
        if self._stepper is not None and start:
            self._stepper.restore(snapshot.samples)

    def _say_idle(self) -> None:
        """All along the chains, so that nobody's wait runs out."""
        self._pass_on(Idle(stamp=self._edges.stamp))

    def _pass_on(self, note: Note) -> None:
        for onward in (*self._peers, *self._forks, self._outlet or self._home):
            if onward is not None:
                onward.send(pack_note(note))

    @property
    def _loaded(self) -> list[Stage]:
        assert self._stages, "load() comes first"
        return self._stages

    def _sender(self, spec: LinkSpec | None) -> Sender | None:
        return None if spec is None else self._opened(open_sender(spec))

    def _receiver(self, spec: LinkSpec | None) -> Receiver | None:
        return None if spec is None else self._opened(open_receiver(spec))

    def _opened(self, end: _End) -> _End:
        self._links.append(end)
        return end

    def _close_links(self) -> None:
        links, self._links = self._links, []
        for end in links:
            end.close()
        if self._share is not None:
            self._share.close()
