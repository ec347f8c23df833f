"""A server as users run it: its own process, a home of its own, ended with the test."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
from processes import ended_with_us
from texts import TEXTS

START_S = 120.0
RENDER_S = 180.0

# a render of a second: frames of 32 x 48 in 2 steps, a segment every second of 8 frames
SMALL = {
    "video.height": 32,
    "video.width": 48,
    "video.fps": 8,
    "sampling.steps": 2,
    "blocks.policy": "forcing",
    "blocks.size": 2,
}


def asked(prompt="a red circle", frames=17, **more):
    settings = SMALL | more.pop("settings", {})
    return {"prompt": prompt, "frames": frames, "settings": settings, **more}


class Server:
    """One `longreel serve`; it may be killed and started again on the same home."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self.home, self._arguments = home, arguments
        self.process: subprocess.Popen | None = None
        self.log = home.parent / f"{home.name}.log"
        self.port = 0

    def start(self):
        command = [str(Path(sys.executable).parent / "longreel"), "serve"]
        command += ["--port", str(self.port), "--home", str(self.home), "--preset", "tiny"]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                ended_with_us([*command, *self._arguments, f"model.text_cache={TEXTS}"]),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.home.parent,
                env=os.environ | {"HOME": str(self.home.parent)},
            )
        line = self.process.stdout.readline()
        assert line.startswith("longreel serves at "), self.log.read_text()
        self.url = line.split()[-1]
        self.port = int(self.url.rpartition(":")[2])  # a server that is started again is there too
        self._wait_ready()
        return self

    def _wait_ready(self):
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            try:
                if httpx.get(self.url + "/readyz", timeout=10).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def stop(self):
        is_asked = self.process.poll() is None
        if is_asked:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(60)
            assert code == 0 or not is_asked, f"{code}\n{self.log.read_text()}"
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self.process.stdout.close()


@contextmanager
def serving(home: Path, *arguments: str):
    server = Server(home, *arguments)
    try:
        yield server.start()
    finally:
        if server.process is not None and server.process.poll() is None:
            server.stop()


def until(look, want, within_s=RENDER_S, every_s=0.1):
    """What `look` returns once `want` is true of it."""
    deadline = time.monotonic() + within_s
    while not want(seen := look()):
        assert time.monotonic() < deadline, seen
        time.sleep(every_s)
    return seen


def ended(http: httpx.Client, render: str, within_s=RENDER_S):
    over = ("done", "failed", "cancelled")
    return until(
        lambda: http.get(f"/api/v1/renders/{render}").json(),
        lambda seen: seen["status"] in over,
        within_s,
    )
