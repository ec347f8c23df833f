"""One render after the other over a model that stays loaded; told what to do by another thread."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..home.folder import RenderFolder
from ..home.record import RenderRun
from .pace import credit, is_paced
from .warm import WarmBackends

_TOLD_S = 0.1  # between two accounts of the same work
_POLL_S = 0.1


class WarmRun:
    """The run that is at it, if any; it may be asked to stop before it begins."""

    def __init__(self, say: Callable[..., None]) -> None:
        self._say = say
        self._backends = WarmBackends()
        self._changed = threading.Condition()
        self._run: RenderRun | None = None
        self._stopped = False
        self._taken = 0
        self._told: dict[str, float] = {}
        self.render = ""

    def expect(self, render: str) -> None:
        """The next one: what is said from here on is about it."""
        with self._changed:
            self.render, self._stopped, self._taken = render, False, 0
            self._told = {}

    def go(self, folder: RenderFolder, command: Mapping[str, Any]) -> str:
        """How it ended: done or stopped."""
        ahead = credit(folder.plan) if is_paced(command["request"]) else None
        run = RenderRun(folder, self._report(ahead), self._backends.open)
        with self._changed:
            self._run = run
            if self._stopped:
                run.stop()
        try:
            return "done" if run.run().state == "done" else "stopped"
        finally:
            with self._changed:
                self._run = None

    def release(self) -> None:
        """Between two renders: devices of a cluster, which others may wait for."""
        self._backends.release()

    def obey(self, command: Mapping[str, Any]) -> None:
        match command["do"]:
            case "stop" if command["render"] == self.render:
                with self._changed:
                    self._stopped = True
                    if self._run is not None:
                        self._run.stop()
                    self._changed.notify_all()
            case "taken":
                with self._changed:
                    self._taken = max(self._taken, command["frames"])
                    self._changed.notify_all()
            case "prompt":
                self._say("prompt", number=command["number"], **self._change(command["prompt"]))

    def _change(self, prompt: str) -> dict[str, str]:
        with self._changed:
            run = self._run
        if run is None:
            return {"error": "the render has not begun, or is over"}
        if not run.is_loaded:  # nor may other commands wait for that
            return {"error": "the render is still loading; try again in a moment"}
        try:
            run.set_prompt(prompt)
        except ValueError as error:
            return {"error": str(error)}
        except Exception as error:  # whatever the text encoder says: the render goes on
            return {"error": f"the prompt could not be read ({type(error).__name__})"}
        return {}

    def _report(self, ahead: int | None) -> Callable[..., None]:
        def report(what: str, done: int, total: int, note: str = "") -> None:
            now = time.monotonic()
            if done == total or now - self._told.get(what, 0.0) >= _TOLD_S:
                self._told[what] = now
                busy_s = self._backends.busy_s()
                self._say("progress", what=what, done=done, total=total, note=note, busy_s=busy_s)
            if what == "decode" and ahead is not None:
                self._wait_for_reader(done - ahead)

        return report

    def _wait_for_reader(self, frames: int) -> None:
        """Until so many are taken; nothing is begun meanwhile, as nobody takes what is made."""
        with self._changed:
            while self._taken < frames and not self._stopped:
                self._changed.wait(_POLL_S)
