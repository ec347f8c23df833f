"""Readers and servers are killed at random moments: nothing is lost, doubled or different."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest
from processes import alive, all_gone
from server import SMALL, Server, asked, ended, until

import longreel
from longreel.jobs.home.home import Home
from longreel.jobs.home.record import RenderRun
from longreel.jobs.mp4 import decode_mp4
from longreel.jobs.render import plan_render
from longreel.jobs.serve import worker_link
from longreel.jobs.serve.worker_link import Worker

SHAPE = (SMALL["video.height"], SMALL["video.width"], 3)

# keeps what it is given, frame by frame, and begins where the file ends
CONSUMER = """
import os, sys
import longreel
url, render, path, size = *sys.argv[1:4], int(sys.argv[4])
file = open(path, "ab")
whole = os.path.getsize(path) // size
file.truncate(whole * size)
with longreel.Client(url) as client:
    for frames in client.get(render).frames(start=whole):
        for frame in frames:
            file.write(frame.tobytes())
            file.flush()
"""


def undisturbed(folder, **request):
    """Bytes of the video that nobody has disturbed."""
    overrides = [f"{key}={value}" for key, value in SMALL.items()]
    plan = plan_render("a red circle", preset="tiny", overrides=overrides, **request)
    render = Home(folder).create(plan)
    RenderRun(render).run()
    parts = [render.init, *(segment.path for segment in render.segments())]
    return b"".join(part.read_bytes() for part in parts)


def size_of(path):
    return path.stat().st_size if path.exists() else 0


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_a_reader_that_is_killed_again_and_again_gets_each_frame_once(server, tmp_path, kills):
    frames = 81 if kills < 50 else 801
    dice = random.Random(kills)
    path, size = tmp_path / "frames", int(np.prod(SHAPE))
    with longreel.Client(server.url) as client:
        render = client.render("a red circle", frames=frames, settings=SMALL)
        command = [sys.executable, "-P", "-c", CONSUMER, server.url, render.id, path, size]
        killed = 0
        while True:
            reader = subprocess.Popen([*map(str, command)])
            try:
                if killed == kills:
                    reader.wait(300)
                    break
                before = size_of(path)
                until(lambda b=before, r=reader: size_of(path) > b or r.poll() is not None, bool)
                time.sleep(dice.uniform(0, 0.1))
            finally:
                reader.kill()
                reader.wait()
            killed += 1
        render.wait()
        video = render.download(tmp_path / "video.mp4")
    got = np.fromfile(path, np.uint8).reshape(-1, *SHAPE)
    assert np.array_equal(got, np.stack([*decode_mp4(video)]))
    assert len(got) == frames


@pytest.mark.parametrize(
    ("renders", "kills"), [(2, 1), pytest.param(10, 6, marks=pytest.mark.slow)]
)
def test_a_server_that_is_killed_finds_its_renders_again(tmp_path, renders, kills):
    dice = random.Random(kills)
    server = Server(tmp_path / "home").start()
    requests = [{"frames": 41, "seed": seed} for seed in range(renders)]
    try:
        with (
            longreel.Client(server.url) as client,
            httpx.Client(base_url=server.url, timeout=120) as http,
        ):
            made = [
                client.render("a red circle", settings=SMALL, key=f"key-{i}", **request)
                for i, request in enumerate(requests)
            ]
            got: list[np.ndarray] = []

            def read():  # a reader that goes on through it all
                got.extend(made[0].frames())

            reader = threading.Thread(target=read)
            reader.start()
            for _ in range(kills):
                until(lambda: list(server.home.glob("renders/*/segments/*.m4s")), bool)
                time.sleep(dice.uniform(0, 1.5))
                workers = children(server.process.pid)
                server.kill()
                assert workers
                assert all_gone(workers, 15), "a worker outlives its server"
                server.start()
                # what a client sends again because it heard nothing is no other render
                again = client.render("a red circle", settings=SMALL, key="key-1", **requests[1])
                assert again.id == made[1].id
            for render in made:
                assert ended(http, render.id, within_s=300)["status"] == "done"
            reader.join(60)
            listed = http.get("/api/v1/renders", params={"limit": 100}).json()["data"]
            assert sorted(one["id"] for one in listed) == sorted(r.id for r in made)
            for i, render in enumerate(made):
                video = http.get(f"/api/v1/renders/{render.id}/video").content
                assert video == undisturbed(tmp_path / f"alone{i}", **requests[i])
            first = made[0].download(tmp_path / "first.mp4")
            assert np.array_equal(np.concatenate(got), np.stack([*decode_mp4(first)]))
    finally:
        if server.process.poll() is None:
            server.stop()
    assert not list(tmp_path.glob("home/renders/*/**/.*.part"))
    assert not list(tmp_path.glob("home/renders/*/lock"))


def test_a_server_that_is_asked_to_end_has_done_what_it_was_asked(tmp_path):
    """For whatever looks after it, and reads its log line by line."""
    server = Server(tmp_path / "home").start()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 0
    server.process.stdout.close()
    told = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert all("\x1b" not in str(value) for line in told for value in line.values())


def test_a_worker_that_stands_still_is_as_good_as_gone(tmp_path, monkeypatch):
    """Stopped from outside, or in native code that holds the interpreter: it would never end."""

    async def main():
        worker = await Worker.start({"home": str(tmp_path), "idle_s": 600.0})
        try:
            sign = json.loads(await worker._process.stdout.readline())
            assert sign["event"] == "alive"
            os.kill(worker.pid, signal.SIGSTOP)
            monkeypatch.setattr(worker_link, "LOOK_S", 0.2)
            assert await worker.hear() is None
        finally:
            assert await worker.end() == -signal.SIGKILL

    asyncio.run(asyncio.wait_for(main(), 300))


def children(pid):
    """Processes that this one has started."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_one_that_keeps_dying_ends_its_render(tmp_path):
    server = Server(tmp_path / "home").start()
    try:
        with httpx.Client(base_url=server.url, timeout=120) as http:
            render = http.post("/api/v1/renders", json=asked(frames=2001)).json()["id"]
            path = f"/api/v1/renders/{render}"
            for attempt in (1, 2, 3):
                until(
                    lambda: http.get(path).json(),
                    lambda seen, n=attempt: seen["attempts"] == n and seen["progress"]["step"] > 0,
                )
                for pid in children(server.process.pid):
                    os.kill(pid, 9)
            seen = ended(http, render)
            assert (seen["status"], seen["error"]["code"]) == ("failed", "worker_lost")
            assert "3 processes" in seen["error"]["message"]
            after = http.post("/api/v1/renders", json=asked(frames=17)).json()["id"]
            assert ended(http, after)["status"] == "done", "the server is none the worse"
            text = http.get("/metrics").text
            assert "longreel_recoveries_total 2.0" in text
        workers = children(server.process.pid)
    finally:
        server.stop()
    assert not any(map(alive, workers))
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line[0] == "{"]
    assert "failed" in [line["event"] for line in lines]
