"""A run's folder: its configuration, its log, and checkpoints that are whole or not there."""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from ...configs.train_load import load_training, training_yaml
from ...configs.train_schema import TrainConfig
from ..home.durable import PART, name, write_whole, written_aside
from ..home.lock import try_lock

_log = logging.getLogger("longreel")
_CONFIG, _LOG, _LOCK = "run.yaml", "log.jsonl", ".lock"
_CHECKPOINTS, _STEP = "checkpoints", "step-{:08d}"
_KEPT = 2
_FREE = ("summary", "run.output", "report.")  # change nothing of what is learnt


class Lock:
    """A folder's, for as long as one process has it open: it is handed on to those of the run."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return _handed_on, (DupFd(self.descriptor),)


def _handed_on(duplicate: Any) -> Lock:
    return Lock(duplicate.detach())


class RunFolder:
    """Written by the first rank; the others read, and add their part to a checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._checkpoints = folder / _CHECKPOINTS

    def check(self, config: TrainConfig) -> None:
        """ValueError where the folder holds another run, or other things; or a new run would ignore
        some of what it is told."""
        file = self.path / _CONFIG
        if os.path.exists(file):  # Path.exists raises for names that are too long
            self._check_same(config, file)
            return
        config.check_asked()
        if os.path.isdir(self.path) and not all(map(_is_begun, self.path.iterdir())):
            raise ValueError(
                f"run.output={self.path} holds files that are not of a training run, and ours "
                "would be lost among them; name an empty folder or one that does not exist"
            )
        elif os.path.exists(self.path) and not os.path.isdir(self.path):
            raise ValueError(
                f"run.output={self.path} is a file, so the run has no folder; name another"
            )

    @contextlib.contextmanager
    def claimed(self, config: TrainConfig) -> Iterator["Lock"]:
        """The folder is this run's, and no other process's meanwhile; another run's is an error."""
        make_folder("run.output", self.path, "the run has")
        self.check(config)
        lock = Lock(os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644))
        try:
            self._take(lock)
            write_whole(self.path / _CONFIG, training_yaml(config).encode())
            self._checkpoints.mkdir(exist_ok=True)
            self._sweep()
            yield lock
        finally:
            os.close(lock.descriptor)

    def _take(self, lock: "Lock") -> None:
        try:
            if not try_lock(lock.descriptor):
                raise ValueError(
                    f"run.output={self.path} is being trained by another process, and two would "
                    "write over each other; wait for it, or end it first"
                )
        except OSError as error:  # a file system that has no such locks
            _log.warning("%s cannot be locked (%s): train there once at a time", self.path, error)

    def _sweep(self) -> None:
        """Without what a run that was killed had begun to write."""
        for folder in (self.path, self._checkpoints):
            for left in folder.glob(f".*{PART}"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    def last(self) -> Path | None:
        """The newest checkpoint."""
        found = sorted(self._checkpoints.glob("step-*"))
        return found[-1] if found else None

    def part(self, step: int) -> Path:
        return self._checkpoints / f".{_STEP.format(step)}{PART}"

    def finish(self, step: int) -> None:
        """The part gets its name; the oldest beyond the last two go."""
        target = self._checkpoints / _STEP.format(step)
        if target.exists():  # saved at the same step before: the same bits
            shutil.rmtree(self.part(step))
            return
        name(self.part(step), target)
        for old in sorted(self._checkpoints.glob("step-*"))[:-_KEPT]:
            shutil.rmtree(old)

    @contextlib.contextmanager
    def exported(self) -> Iterator[Path]:
        """Where the model is written to: whole, it takes the place of what was exported before."""
        model = self.path / "model"
        with written_aside(model) as part:
            yield part
            if model.exists():  # of the same run: the same
                shutil.rmtree(model)

    def log(self, line: Mapping[str, Any]) -> None:
        with (self.path / _LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        file = self.path / _LOG
        if not file.exists():
            return []
        lines = []
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # cut short when the disk was full
                lines.append(json.loads(line))
        return lines

    def forget_after(self, step: int) -> None:
        """Lines of steps that are taken again."""
        kept = [line for line in self.lines() if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_whole(self.path / _LOG, text.encode())

    def _check_same(self, config: TrainConfig, file: Path) -> None:
        try:
            other = load_training(str(file))
        except ValueError as error:
            raise ValueError(
                f"run.output={self.path} holds a run that this version cannot read ({error}), so "
                "it cannot go on; name another folder"
            ) from None
        mine, theirs = dict(_flat(config)), dict(_flat(other))
        for key, value in mine.items():
            if theirs[key] != value and not key.startswith(_FREE):
                raise ValueError(
                    f"run.output={self.path} holds a run with {key}={theirs[key]}, which cannot "
                    f"go on with {key}={value}; name another run.output, or set "
                    f"{key}={theirs[key]}"
                )


def _is_begun(path: Path) -> bool:
    """Whether it is what a run begins its folder with, before that is known as one."""
    return path.name == _LOCK or (path.name.startswith(f".{_CONFIG}") and path.suffix == PART)


def make_folder(field: str, folder: Path, who_has: str) -> None:
    """ValueError where it neither is there nor can be made: `who_has` none then."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # the latter for a NUL in its name
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{field}={folder} cannot be made ({reason}), so {who_has} no folder; name another"
        ) from None


def _flat(config: TrainConfig) -> Iterator[tuple[str, Any]]:
    for field, value in vars(config).items():
        if hasattr(value, "__dataclass_fields__"):
            yield from ((f"{field}.{key}", item) for key, item in vars(value).items())
        else:
            yield field, value
