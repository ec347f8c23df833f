"""Trials of chaos: a render that is hurt a few times, as a seed draws it, and comes out whole."""

import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import victim
from processes import kill, session, state, wait_until
from victim import DONE, FULL, KILLED, STALE_S, TAKEN, Hurt, Order

from longreel.jobs.home.folder import RenderFolder
from longreel.jobs.home.home import Home
from longreel.jobs.home.journal import JournalReader

LIMIT_S = 120.0  # for any process to end, on a machine that has other work
_FOLDER = {".lock-guard", "manifest.json", "journal", "init.mp4", "segments", "latents", "inputs"}
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(  # what every victim would import for itself
    [
        "longreel.jobs.home.home",
        "longreel.jobs.home.record",
        "longreel.pipeline.generator",
        "diffusers.models.autoencoders.autoencoder_kl_wan",
        "av",
    ]
)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The undisturbed render, and how often it comes by each place."""

    render: RenderFolder
    digests: Sequence[str]
    frames: np.ndarray
    seen: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Act:
    """One go, and what becomes of the folder after it."""

    hurts: tuple[Hurt, ...]
    changes: Mapping[str, object] = field(default_factory=dict)
    corrupt: str = ""  # truncate, flip: the newest checkpoint; cut: the journal's last line


UNHURT = Act(hurts=())


class Trial:
    """Of one render in a home of its own; of an edit of it, where that and it are given."""

    def __init__(self, folder: Path, plan, edit=(), finished=None) -> None:
        self.render = Home(folder / "home").create(plan)
        self._edit = edit
        if finished is not None:
            shutil.rmtree(self.render.path)
            self.render = RenderFolder(shutil.copytree(finished.path, self.render.path))
        self._log = folder / "log"
        self._goes = 0

    @property
    def log(self) -> str:
        return "".join(path.read_text() for path in sorted(self._log.parent.glob("log*.txt")))

    def order(self, hurts=(), changes=None) -> Order:
        self._goes += 1
        log = self._log.with_name(f"log{self._goes}.txt")
        return Order(
            folder=self.render.path,
            edit=self._edit,
            hurts=tuple(hurts),
            changes=dict(changes or {}),
            log=log,
            environment={name: os.environ[name] for name in os.environ if name.startswith("RAY_")},
        )

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to be hurt."""
        render = RenderFolder(self.render.path)
        return render.status().state == "done" and render.revision == bool(self._edit)

    def events(self):
        """Of its journal."""
        return JournalReader(self.render.path / "journal").poll()

    def seen(self) -> Mapping[str, int]:
        """What the last go came by, if it came to its end."""
        return json.loads(self._log.with_name(f"log{self._goes}.json").read_text())

    @contextmanager
    def going(self, act: Act):
        """Its process, which is gone after this."""
        process = CONTEXT.Process(target=victim.go, args=(self.order(act.hurts, act.changes),))
        process.start()
        try:
            yield process
        finally:
            for pid in {*session(process.pid), process.pid}:
                kill(pid)
            process.join(LIMIT_S)

    def go(self, act: Act = UNHURT) -> int:
        """How it ended. A process that stopped itself has been taken over, and woken when the
        other was done."""
        with self.going(act) as process:
            pid = process.pid
            stops = [h for h in act.hurts if h.what in ("stop", "wake") and h.whom == "driver"]
            if stops:
                assert wait_until(lambda: state(pid) in "TZX", LIMIT_S), self.log
            if stops and state(pid) == "T":
                code = self._take_over(process, while_it_runs=stops[0].what == "wake")
            else:
                code = self._end_of(process)
        self._corrupt(act.corrupt)
        return code

    def _end_of(self, process) -> int:
        process.join(LIMIT_S)
        assert process.exitcode is not None, f"no end within {LIMIT_S} s\n{self.log}"
        assert not session(process.pid), f"an orphan\n{self.log}"
        return process.exitcode

    def _take_over(self, stopped, *, while_it_runs: bool) -> int:
        """The process that stopped wakes when the other is done, or as soon as it has begun."""
        lock = self.render.path / "lock"
        assert wait_until(lambda: not lock.exists() or _age(lock) > STALE_S, LIMIT_S)
        status = RenderFolder(self.render.path).status()
        ends = DONE if self.is_done else TAKEN
        with self.going(UNHURT) as other:
            reader = RenderFolder(self.render.path)
            begun = lambda: reader.status().attempt > status.attempt or not other.is_alive()  # noqa: E731
            assert wait_until(begun if while_it_runs else lambda: not other.is_alive(), LIMIT_S)
            before = _files(self.render.path)
            os.kill(stopped.pid, signal.SIGCONT)
            code, ended = self._end_of(other), self._end_of(stopped)
        if code == TAKEN:  # it stood still while it took the lock, or gave it back
            return ended
        assert ended == ends, f"it ended with {ended}\n{self.log}"
        if not while_it_runs:
            assert _files(self.render.path) == before, "a process that was taken over has written"
        return code

    def _corrupt(self, how: str) -> None:
        path = self.render.path / "journal"
        if how in ("truncate", "flip"):
            found = sorted((self.render.path / "checkpoints").glob("0*.safetensors"))
            if not found:
                return
            path = found[-1]
        if not how or not path.exists():
            return
        data = bytearray(path.read_bytes())
        if how == "flip":
            data[len(data) // 2] ^= 4
        else:
            del data[-len(data) // 3 if how == "truncate" else -20 :]
        path.write_bytes(data)

    def check(self, truth: Truth) -> None:
        """Nothing is lost, doubled or different, and nothing is left over."""
        render = RenderFolder(self.render.path)
        assert render.status().state == "done", self.log
        assert [s.digest for s in render.segments()] == list(truth.digests), self.log
        assert np.array_equal(np.stack(list(render.frames())), truth.frames), self.log
        assert {path.name for path in render.path.iterdir()} == _FOLDER
        seen = [*render.segments(), *(render.cut(0).segments if render.cut().number else ())]
        for folder in ("segments", "latents"):
            kept = {path.stem for path in (render.path / folder).iterdir()}
            assert kept == {segment.path.stem for segment in seen}, self.log


def make_truth(folder: Path, plan, edit=(), finished=None) -> Truth:
    trial = Trial(folder, plan, edit, finished)
    assert trial.go() == DONE, trial.log
    segments = trial.render.segments()
    return Truth(
        render=trial.render,
        digests=[segment.digest for segment in segments],
        frames=np.stack(list(trial.render.frames())),
        seen=trial.seen(),
    )


def draw(seed: int, seen: Mapping[str, int]) -> list[Act]:
    """One to three goes that are hurt; the first at any place, later ones sooner than that."""
    rng = random.Random(seed)
    acts = []
    for i in range(rng.choice([1, 1, 2, 3])):
        place = rng.choice(sorted(seen))
        nth = rng.randrange(max(1, int(seen[place] * 0.8 / 2**i)))
        what = rng.choice(["kill", "kill", "kill", "stop", "wake", "full"])
        hurt = Hurt(what=what, place=place, nth=nth, lasts=rng.choice([1, 3, 10**6]))
        corrupt = rng.choice(["", "", "truncate", "flip", "cut"]) if what == "kill" else ""
        changes = {"parallel.num_stages": rng.choice([1, 2, 3])}
        acts.append(Act(hurts=(hurt,), changes=changes, corrupt=corrupt))
    return acts


_STATES = ("PLACE", "LOAD", "JOIN", "RUN", "FENCE", "REPAIR", "DRAIN")


def draw_over_ray(seed: int, changes: Mapping[str, object]) -> list[Act]:
    """One or two goes: an actor is lost, or the driver in any state of its chain, or both."""
    rng = random.Random(seed)
    acts = []
    for _ in range(rng.choice([1, 1, 2])):
        hurts = []
        where = rng.choice([*_STATES, "", ""])
        if where in ("FENCE", "REPAIR", "") or rng.random() < 0.3:
            place, nth = rng.choice(
                [("denoise", rng.randrange(2, 12)), ("decode", rng.randrange(4))]
            )
            whom, what = rng.choice(["stage", "stage", "decoder"]), rng.choice(["kill", "stop"])
            if where in ("FENCE", "REPAIR"):
                whom = "stage"
            hurts.append(Hurt(what=what, place=place, nth=nth, whom=whom))
        if where:
            what = rng.choice(["kill", "kill", "wake"])
            hurts.append(Hurt(what=what, place=f"chain {where}"))
        stages = {"parallel.num_stages": rng.choice([1, 2, 3])}
        acts.append(Act(hurts=tuple(hurts), changes={**changes, **stages}))
    return acts


def run_trial(trial: Trial, acts: Sequence[Act], truth: Truth) -> int:
    """How many of its goes were hurt."""
    for act in acts:
        if trial.is_done:
            break
        code = trial.go(act)
        assert code in (DONE, FULL, KILLED), f"{act} ended with {code}\n{trial.log}"
        status = RenderFolder(trial.render.path).status()
        if status.state == "failed":
            assert "No space left on device" in status.reason
            assert f"`longreel resume {trial.render.id} --home" in status.reason
    assert trial.go() == DONE, trial.log
    trial.check(truth)
    return trial.log.count("strikes:")


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock-guard"
    }


def _age(path: Path) -> float:
    with suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime
    return math.inf
