"""A chain whose actors are threads of this process, over in-process links: Ray's without Ray."""

import itertools
import threading
from functools import partial

from longreel.parallel.chain import branch_passes
from longreel.parallel.edges import wire
from longreel.parallel.link import LinkClosed, LinkSpec, Rendezvous
from longreel.parallel.marks import Vault
from longreel.parallel.messages import Stamp
from longreel.parallel.ray_stage import StageActor
from longreel.parallel.snapshot import pack_snapshot
from longreel.pipeline.backend import (
    LocalBackend,
    make_stage,
    make_stepper,
    make_windows,
)
from longreel.pipeline.slices import slices

_numbers = itertools.count()


class ThreadChain:
    is_loaded = True

    def __init__(self, plan, sampling, timeout_s=20.0, make_stage=make_stage, stamp=None):
        self.stamp = stamp = stamp or Stamp(render=f"threads-{next(_numbers)}", epoch=0)
        cut, layout = slices(plan), plan.layout

        self._meeting = Rendezvous("127.0.0.1")  # of the devices of a stage

        def link(start, stop):
            return LinkSpec(
                kind="local",
                name=f"{stamp.render}/{start}-{stop}",
                host=self._meeting.host,
                port=self._meeting.port,
                timeout_s=timeout_s,
            )

        self._cut, self._layout, self._vault = cut, layout, Vault()
        self.stages = [StageActor() for _ in layout.seats]
        last = layout.last
        self.last = self.stages[last]
        edges = wire(layout, stamp, timeout_s, link)
        for i, (stage, seat) in enumerate(zip(self.stages, layout.seats, strict=True)):
            builds = [partial(make_stage, plan, cut[number], "cpu") for number in seat.stages]
            stage.load(builds, "cpu")
            stage.join(
                edges[i],
                partial(make_windows, sampling, "cpu") if i == 0 else None,
                partial(make_stepper, plan, sampling, "cpu") if i == last else None,
                self._passes(seat),
            )

    def _passes(self, seat):
        return branch_passes(seat.branch if self._layout.num_branches > 1 else None)

    def run(self, schedule, start=None, limit=None, wanted=lambda has_finished: False, seen=0):
        for i, (stage, seat) in enumerate(zip(self.stages, self._layout.seats, strict=True)):
            packed = start and pack_snapshot(
                start,
                first=i == 0,
                last=stage is self.last,
                layers={layer for n in seat.stages for layer in self._cut[n]},
                passes=self._passes(seat),
            )
            stage.loop.restore(packed, limit, seen)
        return self._run(schedule, wanted)

    def _run(self, schedule, wanted):
        errors = []

        def work(stage):
            try:
                stage.run(schedule)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(stage,)) for stage in self.stages]
        for thread in threads:
            thread.start()
        taken, number, seen, ready, has_finished = 0, 0, 0, None, False
        try:
            while True:
                batch = self.last.take(0.05)
                for done in batch.done():
                    yield done
                    number = done.task.number + 1
                    taken += len(done.finished)
                    has_finished = has_finished or bool(done.finished)
                    self.stages[0].taken(taken)
                wants = ready is None and wanted(has_finished)
                if wants and (marked := self.stages[0].ask_mark(seen, 0.02)):
                    seen, known = marked.number, self._vault.known
                    parts = [stage.collect(seen, known, 5.0) for stage in self.stages]
                    ready = self._vault.assemble(marked, parts)
                if ready is not None and ready.walk.number <= number:
                    yield ready
                    ready, has_finished = None, False
                if batch.over:
                    break
        finally:
            for thread in threads:
                thread.join(0.5)  # at a good end they are there in a moment
            for stage in self.stages:
                stage.cut()
            for thread in threads:
                thread.join(5.0)
                assert not thread.is_alive()
            self._meeting.close()
        for error in sorted(errors, key=lambda error: isinstance(error, LinkClosed)):
            raise error

    def stop(self):
        return self.stages[0].stop()

    def change_text(self, text):
        return self.stages[0].change_text(text)


class ThreadBackend(LocalBackend):
    def __init__(self, plan, given_up=None, **options):
        super().__init__(plan)
        self._options = options
        self.chains = []

    def chain(self, sampling):
        self.chains.append(ThreadChain(self._plan, sampling, **self._options))
        return self.chains[-1]
