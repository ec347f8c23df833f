"""What an actor does in one epoch of its chain: receive, run, send, task after task.

One thread runs it; others count, take, or close. On the first stage a third thread brings the ring
home.
"""

import threading
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from .chain import Schedule, Stepper
from .edges import Edges
from .front import Front
from .link import LinkClosed, LinkSpec, Receiver, Sender, open_receiver, open_sender
from .marks import Marks
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
from .outbox import Outbox
from .sequence import Share, open_share
from .snapshot import EMPTY, Admission, PackedSnapshot
from .stage import Activation, Inputs, Moved, Stage, split_passes
from .tasks import Task, WalkState

_End = TypeVar("_End", Sender, Receiver)


class Loop:
    """Of consecutive stages that share a device: one hands its activation to the next, and only
    what leaves the device goes over a link."""

    def __init__(
        self,
        stages: Sequence[Stage],
        device: torch.device,
        edges: Edges,
        passes: range,
        front: Front | None,
        stepper: Stepper | None,
    ) -> None:
        """`front`: of the first stage; `stepper`: of the last."""
        self.front = front
        self.outbox = Outbox()
        self.marks = Marks()
        self.admission = Admission()
        self.task = -1  # that it has the input of, or had last
        self._stages = stages
        self._device = device
        self._edges = edges
        self._passes = passes
        self._stepper = stepper
        self._walk = WalkState()
        self._velocities: tuple[Tensor, ...] = ()  # of the passes of a task so far
        self._links: list[Sender | Receiver] = []
        self._closed = False
        self.share: Share | None = None

    def open(self, start: PackedSnapshot | None, limit: int | None, seen: int) -> None:
        """Links to neighbours and groups within the stage; they meet as they are used."""
        edges = self._edges
        self.share = open_share(edges.shards, edges.heads)
        for stage in self._stages:
            stage.join(self.share)
        self.restore(start, limit, seen)
        self._inlet, self._outlet = self._receiver(edges.inlet), self._sender(edges.outlet)
        self._ring, self._home = self._receiver(edges.ring), self._sender(edges.home)
        self._peers, self._forks = (
            [self._opened(open_sender(spec)) for spec in specs]
            for specs in (edges.peers, edges.forks)
        )
        self._merge_in = self._receiver(edges.merge_in)
        self._merge_out = self._sender(edges.merge_out)

    def restore(
        self, start: PackedSnapshot | None, limit: int | None = None, seen: int = 0
    ) -> None:
        """Go on from there; none: from the beginning. See StageActor.join."""
        snapshot = start.unpack() if start else EMPTY
        self._walk = snapshot.walk
        for stage in self._stages:
            stage.restore(snapshot.walk.entries, snapshot.caches, self._passes)
        if self.front is not None:
            if start:
                self.front.restore(snapshot)
            self.admission.resume(self._walk.next_block, limit, seen)
            self.front.admit(seen)
        if self._stepper is not None and start:
            self._stepper.restore(snapshot.samples)

    def run(self, schedule: Schedule | None) -> None:
        try:
            if self.front is not None:
                assert schedule is not None
                self._lead(schedule, self.front)
            else:
                self._follow()
        except BaseException:
            self.close()
            raise
        finally:
            self.outbox.end()

    def cut(self) -> None:
        """From any thread: `run` ends with LinkClosed."""
        if self.front is not None:
            self.front.fail(LinkClosed("this stage was cut off"))
        self.close()

    def close(self) -> None:
        self._closed = True
        self.marks.close()
        links, self._links = self._links, []
        for end in links:
            end.close()
        if self.share is not None:
            self.share.close()

    def _lead(self, schedule: Schedule, front: Front) -> None:
        """The first stage's loop: it alone walks through the schedule."""
        ring = threading.Thread(target=self._bring_home, args=(front,), name="ring", daemon=True)
        if self._ring is not None:
            ring.start()
        walk = schedule.walk(self._walk, self.admission.stopped, front.begins_prompt)
        tick = self._walk.tick
        for task in walk.tasks():
            if task.tick > tick and (number := self.marks.begin()):
                self._walk = walk.tick_start
                self._send_mark(number, front)
            tick = task.tick
            inputs = front.enter(task, self._say_idle)
            self.task = task.number
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
                self.task = header.task.number
                x = unpack_activation(header, message.tensors, self._device)
                del message  # its tensors, where the device has copies
                self._run_pass(header.task, x)
            elif isinstance(header, WindowHeader):
                self.task = header.task.number
                self._run_window(header.task, unpack_window(header, message.tensors, self._device))
            elif isinstance(header, Skip):
                self._skip(header)
            else:
                assert isinstance(header, Note), header
                if isinstance(header, Mark):
                    self._note(header.number)
                self._pass_on(header)
            if isinstance(header, End):
                return

    def _skip(self, header: Skip) -> None:
        self.task = header.task.number
        for stage in self._stages:
            stage.skip(header.task)
        self._pass_on(header)
        if self._merge_out is not None:
            self._merge_out.send(pack_prediction(self._edges.stamp, self.task, ()))

    def _own_part(self, task: Task, inputs: Inputs) -> Inputs:
        """The window, once the others have it: who shares this stage, and the unconditional
        branch its part, if it has stages of its own."""
        stamp, mine = self._edges.stamp, inputs
        if self._forks:
            mine, *others = split_passes(inputs)
            # for every task, here and onward, so that silence means a fault
            skip = pack_note(Skip(stamp=stamp, task=task))
            part = pack_window(stamp, task, others[0]) if others else skip
            for fork in self._forks:
                fork.send(part)
        for peer in self._peers:
            peer.send(pack_window(stamp, task, mine))
        return mine

    def _run_window(self, task: Task, inputs: Inputs) -> None:
        """Pass after pass: the next stage is at one while this stage is at another."""
        for passing in range(len(inputs.texts_BSD)):
            self._run_pass(task, self._stages[0].embed(task, inputs, passing))

    def _run_pass(self, task: Task, x: Activation) -> None:
        for stage in self._stages:
            x = stage.run(task, x)
        if self._outlet is not None:
            self._outlet.send(pack_activation(self._edges.stamp, task, x))
            return
        self._velocities += () if task.commit else self._stages[-1].head(x)
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
            assert self.front is not None, "one stage is both ends"
            self.front.put(moved)
        self.outbox.add(task, moved)

    def _bring_home(self, front: Front) -> None:
        assert self._ring is not None
        try:
            while True:
                message = self._ring.recv()
                header = read_header(message, self._edges.stamp)
                if isinstance(header, MovedHeader):
                    front.put(unpack_moved(header, message.tensors, self._device))
                elif isinstance(header, Mark):
                    self.marks.complete(self._walk, front.end_mark(self._walk))
                elif isinstance(header, End):
                    return
        except BaseException as error:  # raised where the loop waits for what was to come
            front.fail(error)

    def _send_mark(self, number: int, front: Front) -> None:
        front.begin_mark()
        self._note(number)
        self._pass_on(Mark(stamp=self._edges.stamp, number=number))
        if self._ring is None:
            self.marks.complete(self._walk, front.end_mark(self._walk))

    def _note(self, number: int) -> None:
        caches = dict(pair for stage in self._stages for pair in stage.pieces(self._passes))
        self.marks.note(number, self._stepper.held() if self._stepper else {}, caches)

    def _say_idle(self) -> None:
        """All along the chains, so that nobody's wait runs out."""
        self._pass_on(Idle(stamp=self._edges.stamp))

    def _pass_on(self, note: Note) -> None:
        for onward in (*self._peers, *self._forks, self._outlet or self._home):
            if onward is not None:
                onward.send(pack_note(note))

    def _sender(self, spec: LinkSpec | None) -> Sender | None:
        return None if spec is None else self._opened(open_sender(spec))

    def _receiver(self, spec: LinkSpec | None) -> Receiver | None:
        return None if spec is None else self._opened(open_receiver(spec))

    def _opened(self, end: _End) -> _End:
        self._links.append(end)
        if self._closed:  # while it was opened
            end.close()
            raise LinkClosed("this stage was cut off")
        return end
