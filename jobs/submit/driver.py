"""What a Ray job runs: the coordinator of one render, in the folder that came with the job.

Its log is for people and for `longreel watch`: a line that begins with MARK is JSON.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ...pipeline.errors import RenderError
from ..home.folder import RenderFolder
from ..home.home import Home
from ..home.record import RenderRun
from ..render import plan_render
from ..target import check_home
from .errand import MARK, Errand, read_errand

_TOLD_S = 2.0  # between two accounts of the same work


def main() -> None:
    errand = read_errand(Path.cwd())
    _tell(event="started", render=errand.render, pid=os.getpid())
    try:
        state = _make(errand)
    except (OSError, RenderError, ValueError) as error:  # a bug has a trace
        _tell(event="failed", message=str(error))
        state = "failed"
    sys.exit(0 if state == "done" else 3)


def _make(errand: Errand) -> str:
    """How it ended."""
    folder = _folder(errand)
    placed = _placed(errand)
    made = folder.status().frames_done
    check_home(folder.plan_with(placed), folder.path.parents[1], made)
    run = RenderRun(folder, _report(), changes=placed)
    stopped = threading.Event()

    def stop(signum: int, frame: object) -> None:
        """A cancelled job gets SIGTERM, and some seconds: what is final stays, and it can go on."""
        if not stopped.is_set():
            stopped.set()
            threading.Thread(target=run.stop, daemon=True).start()

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)
    status = run.run()
    _tell(event=status.state, frames=status.frames_done, of=status.frames)
    return status.state


def _folder(errand: Errand) -> RenderFolder:
    """The render's, made by the first job that is sent for it."""
    home = Home(Path(errand.home) if errand.home else None)
    if home.has(errand.render):
        return home.open(errand.render)
    if not errand.prompt:
        raise ValueError(
            f"render {errand.render} has no folder in {home.path}: its first job ended before it "
            "made one, and the files that it came with are gone; submit it anew"
        )
    plan = plan_render(
        errand.prompt,
        preset=errand.preset,
        frames=errand.frames,
        seed=errand.seed,
        image=errand.image,
        prompt_at=errand.prompt_at,
        overrides=[
            *errand.overrides,
            *(f"{key}={value}" for key, value in _placed(errand).items()),
        ],
    )
    return home.create(plan, name=errand.render)


def _placed(errand: Errand) -> dict[str, str]:
    """Stages on this job's cluster, where a number of them is asked for."""
    if errand.stages is None:
        return {}
    return {
        "parallel.backend": "ray",
        "parallel.address": os.environ.get("RAY_ADDRESS", "local"),
        "parallel.num_stages": str(errand.stages),
    }


def _report() -> Callable[..., None]:
    told: dict[str, float] = {}

    def report(what: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if done == total or now - told.get(what, 0.0) >= _TOLD_S:
            told[what] = now
            _tell(event="progress", what=what, done=done, total=total, note=note)

    return report


def _tell(**facts: object) -> None:
    print(MARK + json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
