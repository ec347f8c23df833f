"""A process that runs renders for a server, one after the other, with the model kept in between.

Lines of JSON: what to do comes in, what has happened goes out. When the input ends the server is
gone, and this process goes too: the render lies in its folder.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from ...configs.errors import is_memory
from .worker_link import BEAT_S

if TYPE_CHECKING:
    from ..home.home import Home
    from .warm_run import WarmRun

_LAST_STEP_S = 5.0  # for a render to come to the end of its step when the server is gone


def main() -> None:
    commands, say = _open_lines()
    settings = next(commands)
    from ..home.home import Home
    from .warm_run import WarmRun

    home = Home(Path(settings["home"]))
    runs: SimpleQueue[Mapping[str, Any] | None] = SimpleQueue()
    run = WarmRun(say)

    def listen() -> None:
        for command in commands:
            if command["do"] == "run":
                run.expect(command["render"])
            if command["do"] in ("run", "release"):
                runs.put(command)
            else:
                run.obey(command)
        runs.put(None)
        run.obey({"do": "stop", "render": run.render})
        timer = threading.Timer(_LAST_STEP_S, os._exit, args=(1,))
        timer.daemon = True
        timer.start()

    def beat() -> None:
        while True:
            time.sleep(BEAT_S)
            say("alive")

    threading.Thread(target=listen, name="longreel-commands", daemon=True).start()
    say("ready", pid=os.getpid())
    threading.Thread(target=beat, name="longreel-signs", daemon=True).start()
    while (command := _next(runs, settings["idle_s"])) is not None:
        if command["do"] == "run":
            say("over", **_outcome(run, home, command))
        else:
            run.release()
    run.release()
    os._exit(0)  # nothing is left to be put away


def _next(runs: "SimpleQueue[Mapping[str, Any] | None]", idle_s: float) -> Mapping[str, Any] | None:
    try:
        return runs.get(timeout=idle_s)
    except Empty:
        return {"do": "release"}


def _outcome(run: "WarmRun", home: "Home", command: Mapping[str, Any]) -> dict[str, str]:
    """How it ended, in words for the queue; a bug's trace goes to the server's log."""
    from ...pipeline.errors import RenderError
    from ..home.lock import Taken

    try:
        return {"how": run.go(home.open(command["render"]), command)}
    except Taken:
        return {"how": "busy"}
    except (RenderError, ValueError) as error:
        return {"how": "failed", "code": "render_error", "message": str(error)}
    except Exception as error:
        traceback.print_exc()
        if is_memory(error):
            return {
                "how": "failed",
                "code": "out_of_memory",
                "message": "the memory of the device did not suffice; make the video smaller",
            }
        what = f"{type(error).__name__}; the server's log has more"
        return {"how": "failed", "code": "internal_error", "message": what}


def _open_lines() -> tuple[Iterator[Mapping[str, Any]], Callable[..., None]]:
    """What comes in; and what sends, from any thread. Whatever else is printed goes to stderr."""
    sys.stdout.flush()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

    def say(event: str, **facts: object) -> None:
        with lock:
            try:
                out.write(json.dumps({"event": event, **facts}) + "\n")
                out.flush()
            except BrokenPipeError:
                os._exit(1)

    return map(json.loads, sys.stdin), say


if __name__ == "__main__":
    main()
