"""Starts a run's processes on this machine, one or several, and ends them together."""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

from ...configs.train_schema import TrainConfig
from .errors import TrainingError
from .recipe import Recipe
from .recipes import build_recipe, device_type, prepare_recipe
from .store import Lock, RunFolder

Build = Callable[[TrainConfig], Recipe]

_START: Final = "spawn"  # of a rank: a fork of this process could not use a GPU that it has used
_SAME_STOP_S = 3.0  # a terminal and a parent may both pass one Ctrl-C on
_GRACE_S = 120.0  # for the others, once one has ended


def train(config: TrainConfig, build: Build = build_recipe) -> bool:
    """Whether the run came to its end; False when it was stopped, and can go on.

    `build` is sent to the processes by its name, so it must stand at the top of a module.
    """
    from .trainer import output_folder

    _check(config)
    folder = RunFolder(output_folder(config))
    folder.check(config)
    prepare_recipe(config)  # what is wrong with it leaves no folder behind
    with folder.claimed(config) as lock:
        # DeepSpeed keeps what it made for one training, which is wrong for the next of its process
        if config.run.num_processes == 1 and not config.run.zero_stage:
            return _rank(config, build, 0, None)
        with tempfile.TemporaryDirectory(prefix="longreel-train-") as shared:
            return _several(config, build, Path(shared) / "meeting", lock)


def _check(config: TrainConfig) -> None:
    import torch

    if config.run.zero_stage:
        from ...parallel.zero import check_deepspeed

        check_deepspeed()
    gpus = torch.cuda.device_count()
    if config.run.device == "cuda" and not gpus:
        raise ValueError("run.device=cuda finds no GPU here; set it to auto or cpu")
    if device_type(config) == "cuda" and config.run.num_processes > gpus:
        raise ValueError(
            f"run.num_processes={config.run.num_processes} wants a GPU each, and there are {gpus}; "
            "set it to that, or run.device=cpu"
        )


def _rank(config: TrainConfig, build: Build, rank: int, meeting: Path | None) -> bool:
    """One rank's whole life; `meeting` is where it finds the others, if there are any."""
    kind = device_type(config)
    if config.run.zero_stage:  # DeepSpeed reads them
        os.environ["DS_ACCELERATOR"], os.environ["LOCAL_RANK"] = kind, str(rank)
    import torch

    from ...parallel.ranks import Ranks, join, leave
    from .trainer import Trainer

    torch.set_num_threads(config.run.threads)
    torch.backends.cudnn.benchmark = True  # shapes come again and again
    device = torch.device(kind, rank) if kind == "cuda" else torch.device("cpu")
    num = config.run.num_processes
    ranks = (
        Ranks(rank=0, num=1, device=device) if meeting is None else join(rank, num, device, meeting)
    )
    try:
        with _asked_to_stop() as asked:
            trainer = Trainer(config, build(config), ranks, _say)
            return trainer.run(lambda: bool(asked))
    finally:
        leave()


def _say(line: str) -> None:
    print(line, flush=True)


@contextmanager
def _asked_to_stop() -> Iterator[list[float]]:
    """Ctrl-C and the like fill the list, and the step in hand ends first; a later one cuts it."""
    asked: list[float] = []

    def ask(signum: int, frame: object) -> None:
        now = time.monotonic()
        if asked and now - asked[0] > _SAME_STOP_S:
            raise KeyboardInterrupt
        asked.append(now)

    previous = {
        signum: signal.signal(signum, ask)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(signum) is not signal.SIG_IGN
    }
    try:
        yield asked
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _child(
    config: TrainConfig, build: Build, rank: int, meeting: Path, results: Connection, lock: Lock
) -> None:
    """`lock`: the folder's, which stays taken until every process of the run has ended."""
    threading.Thread(target=_end_with_parent, name="longreel-parent", daemon=True).start()
    if device_type(config) == "cpu":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # wherever this host is
    try:
        done = _rank(config, build, rank, meeting)
    except (ValueError, TrainingError, OSError) as error:
        results.send((type(error).__name__, str(error)))
        sys.exit(1)
    results.send(("done", done))


def _end_with_parent() -> None:
    """As with Ctrl-C: the step in hand and a checkpoint, and nobody trains unseen."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _several(config: TrainConfig, build: Build, meeting: Path, lock: Lock) -> bool:
    context = multiprocessing.get_context(_START)
    ends: list[Connection] = []
    processes: list[BaseProcess] = []
    with _asked_to_stop() as asked:
        try:
            for rank in range(config.run.num_processes):
                mine, theirs = context.Pipe(duplex=False)
                args = (config, build, rank, meeting, theirs, lock)
                process = context.Process(target=_child, args=args)
                process.start()
                theirs.close()
                ends.append(mine)
                processes.append(process)
            _watch(processes, asked)
        finally:
            _end(processes)
    said = [_last_word(end) for end in ends]
    for kind, value in filter(None, said):
        if kind != "done":
            raise (ValueError if kind == "ValueError" else TrainingError)(value)
    silent = [p for p, word in zip(processes, said, strict=True) if word is None]
    if asked and silent and all(p.exitcode == -signal.SIGTERM for p in silent):
        return False  # it came before they could take note of it
    if silent:
        codes = [process.exitcode for process in processes]
        lost = next(rank for rank, word in enumerate(said) if word is None)
        raise TrainingError(
            f"process {lost} of {len(processes)} ended before its time (exit codes {codes}); what "
            "it printed says why. Run the same command again to go on from the last checkpoint"
        )
    return all(word[1] for word in said if word)


def _last_word(end: Connection) -> tuple[str, Any] | None:
    try:
        word: tuple[str, Any] = end.recv()
    except EOFError:  # it could say nothing
        return None
    return word


def _watch(processes: Sequence[BaseProcess], asked: Sequence[float]) -> None:
    """Until all have ended; once one has failed, the others get a moment to say why."""
    deadline, passed_on = float("inf"), False
    while alive := [process for process in processes if process.is_alive()]:
        wait([process.sentinel for process in alive], timeout=0.2)
        if any(process.exitcode for process in processes):
            deadline = min(deadline, time.monotonic() + 5)
        elif any(process.exitcode == 0 for process in processes):
            deadline = min(deadline, time.monotonic() + _GRACE_S)
        if time.monotonic() > deadline:
            return
        if asked and not passed_on:
            passed_on = True
            for process in alive:
                assert process.pid
                os.kill(process.pid, signal.SIGTERM)


def _end(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join(timeout=10)
