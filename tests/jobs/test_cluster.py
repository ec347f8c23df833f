"""A render over Ray from the command line: a cluster of its own, and nothing left of it."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from command import SMALL, longreel
from processes import descendants, kept_shared_memory, shared_memory, still_there

import longreel as longreel_package
from longreel.jobs import cluster as connecting
from longreel.parallel.placement import this_node
from longreel.pipeline.backend import GivenUp

pytestmark = pytest.mark.ray
OVER_RAY = ("parallel.num_stages=2", "model.device=cpu", "output.format=png")

TOGETHER = """
import os
import threading
import numpy as np
import longreel

os.cpu_count = lambda: 1

def stream(prompt, *more):
    settings = ["blocks.policy=dualparal", "blocks.size=2", "model.device=cpu", *more]
    settings += ["video.height=32", "video.width=48"]
    return longreel.stream(prompt, preset="tiny", frames=65, overrides=settings)

def frames(chunks):
    return np.concatenate([chunk.frames for chunk in chunks])

def ask(one):
    seen[one] = [next(one)]

alone = frames(stream("a dog"))
one = stream("a cat", "parallel.backend=ray")
two = stream("a dog", "parallel.num_stages=2")
seen = {}
threads = [threading.Thread(target=ask, args=(each,)) for each in (one, two)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(np.array_equal(frames([*seen[two], *two]), alone))
next(one)
"""


@contextmanager
def started(folder, *arguments):
    command = [Path(sys.executable).parent / "longreel", "render", "a cat", *arguments]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    with subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param((), marks=pytest.mark.slow),
        ("parallel.num_stages=1", "parallel.cfg=split", "parallel.backend=ray"),
    ],
)
def test_the_command_renders_over_a_cluster_of_its_own(tmp_path, layout):
    """In the checkout, whose folders are named as packages are that others look for."""
    settings = [*SMALL, "video.frames=17", "blocks.policy=dualparal", "blocks.size=2"]
    local = longreel("render", "a cat", "-o", tmp_path / "one", *settings, "output.format=png")
    assert local.code == 0, local.err
    shared = shared_memory()
    seen: set[int] = set()
    checkout = Path(longreel_package.__file__).parents[1]
    two = tmp_path / "two"
    with started(checkout, "-o", two, *settings, *OVER_RAY, *layout) as ours:
        while ours.poll() is None:
            seen |= descendants(ours.pid)
            time.sleep(0.2)
        words = ours.communicate()[1]
    assert ours.returncode == 0, words
    assert len(words.splitlines()) == 3, words  # one for each of prompt, denoising, decoding
    names = sorted(os.listdir(tmp_path / "one"))
    assert names == sorted(os.listdir(two))
    for name in names:
        if name.endswith(".png"):
            assert (tmp_path / "one" / name).read_bytes() == (two / name).read_bytes()
    assert len(seen) > 5
    assert still_there(seen, 5.0) == set()
    assert kept_shared_memory(shared) == set()


def test_ctrl_c_frees_everything(tmp_path):
    settings = [*SMALL, "blocks.policy=dualparal", "blocks.size=2", "video.frames=40001"]
    with started(tmp_path, "-o", "endless", *settings, *OVER_RAY) as ours:
        assert "prompt" in ours.stderr.readline()
        time.sleep(3.0)  # somewhere between loading and the first frames
        seen = descendants(ours.pid)
        ours.send_signal(signal.SIGINT)
        words = ours.communicate(timeout=20)[1]
    assert ours.returncode == 130
    assert words.splitlines()[-1].startswith("longreel: stopped")
    assert len(words.splitlines()) == 1, words
    assert still_there(seen, 5.0) == set()
    assert list(tmp_path.iterdir()) == []


TERMINATED = """
import os
import signal
import time
from longreel.jobs.cluster import connect

heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
leave = connect("local")
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(4)  # Ray's own handler would abort after three
leave()
os.kill(os.getpid(), signal.SIGTERM)
print(heard)
"""


def test_sigterm_is_what_it_was_beside_a_cluster_and_after_it():
    """A render has a step to end and a journal to write, however long that takes."""
    command = [sys.executable, "-P", "-c", TERMINATED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1, 1]\n", "")


@pytest.mark.parametrize("ray_is_last", [True, False])
@pytest.mark.parametrize("is_heard", [True, False])
def test_what_a_program_makes_of_sigterm_meanwhile_stays(ray_is_last, is_heard):
    """It was undone with what Ray had made of it, and the signal that it was for killed."""
    heard = []
    handlers = [lambda *_: heard.append("SIGTERM"), signal.SIG_IGN]
    before, after = handlers if not is_heard else handlers[::-1]
    steps = [
        lambda: signal.signal(signal.SIGTERM, after),
        lambda: ctypes.CDLL(None).signal(signal.SIGTERM, signal.SIG_DFL),  # as Ray does, beside us
    ]
    outer = signal.signal(signal.SIGTERM, before)
    try:
        with connecting._sigterm_kept():
            for step in steps if ray_is_last else steps[::-1]:
                step()
        # no default in C, whether as a number or as a pointer: the signal would kill us
        assert ctypes.pythonapi.PyOS_getsig(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, outer)
    assert heard == ["SIGTERM"] * is_heard


def test_a_port_that_is_no_ray_head_is_named_within_seconds(tmp_path):
    def answer(server):
        connection, _ = server.accept()
        with connection:
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, args=(server,), daemon=True).start()
        address = f"parallel.address=127.0.0.1:{server.getsockname()[1]}"
        begin = time.monotonic()
        done = longreel("render", "a cat", "-o", tmp_path / "x.mp4", *SMALL, *OVER_RAY[:2], address)
    assert done.code == 2
    assert "answers, but not as a Ray head does" in done.message
    assert time.monotonic() - begin < 5


def test_renders_of_one_process_share_a_cluster_until_the_last_of_them_ends(tmp_path):
    """However many stages they have. Also when the threads that asked for it have ended before. And
    nobody closes the last."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", TOGETHER],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


LOST = """
import os
import signal
import sys
import longreel

settings = ["blocks.policy=dualparal", "blocks.size=2", "model.device=cpu", "parallel.backend=ray"]
settings += ["video.height=32", "video.width=48"]
with longreel.stream("a dog", preset="tiny", frames=161, overrides=settings) as stream:
    for chunk in stream:
        if not chunk.start:
            os.kill(stream._generator._backend._crew.members[0].pid, signal.SIGKILL)
        sys.stdout.write(f"{chunk.start} ")
"""


def test_a_program_s_output_is_its_own_where_an_actor_is_lost(tmp_path):
    """Ray said so on stdout, amid the frames of who writes those there."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    command = [sys.executable, "-P", "-c", LOST]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", *map(str, range(1, 161, 4))]
    (words,) = done.stderr.splitlines()
    assert words.startswith("stage 1 of 1 ")


def test_a_second_cluster_at_the_same_time_is_refused(monkeypatch):
    for name in ("_set_up", "_start", "_reach"):
        monkeypatch.setattr(connecting, name, lambda *address: None)
    for name in ("ray.is_initialized", "ray.shutdown"):
        monkeypatch.setattr(name, lambda: False)
    leave = connecting.connect("local")
    with pytest.raises(ValueError, match=r"head:6379 cannot be joined .*address=local"):
        connecting.connect("head:6379")
    leave()
    connecting.connect("head:6379")()


def test_where_ray_is_on_a_cluster_already_another_one_is_refused(monkeypatch):
    class Context:
        gcs_address = f"{this_node()}:6379"

    monkeypatch.setattr(connecting, "_set_up", lambda address: None)
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.get_runtime_context", Context)
    for same in ("local", "localhost:6379", "127.0.0.1:6379", Context.gcs_address):
        connecting.connect(same)()
    for other in ("localhost:6380", "head:6379"):
        with pytest.raises(ValueError, match=rf"{other} cannot be joined, as ray\.init has put"):
            connecting.connect(other)


def test_a_connection_that_was_interrupted_is_over_before_the_next_begins(monkeypatch):
    seen, begun = [], threading.Event()

    def start():
        seen.append("begin")
        begun.wait(10)
        seen.append("made")

    monkeypatch.setattr(connecting, "_set_up", lambda address: None)
    monkeypatch.setattr(connecting, "_start", start)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: seen.append("over"))
    with monkeypatch.context() as patch:
        patch.setattr(connecting, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            connecting.connect("local")
    begun.set()
    connecting.connect("local")()
    assert seen == ["begin", "made", "over"] * 2


def test_a_connection_is_waited_for_only_as_long_as_somebody_wants_it(monkeypatch):
    """Three renders of one process: one makes it, one waits for that one, one comes after it."""
    may, ends, seen, given_up = threading.Event(), [], [], threading.Event()

    def start():
        seen.append("begin")
        may.wait(60)
        seen.append("made")

    def check():
        if given_up.is_set():
            raise GivenUp

    def wait():
        with pytest.raises(GivenUp):
            connecting.connect("local", check)
        ends.append(time.monotonic())

    monkeypatch.setattr(connecting, "_set_up", lambda address: None)
    monkeypatch.setattr(connecting, "_start", start)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: seen.append("over"))
    threads = [threading.Thread(target=wait, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    given_up.set()
    began = time.monotonic()
    for thread in threads:
        thread.join(30)
    wait()
    assert len(ends) == 3
    assert ends[-1] - began < 5
    may.set()
    connecting.connect("local")()
    assert seen == ["begin", "made", "over"] * 2


def test_the_next_connection_waits_for_one_whose_end_was_interrupted(monkeypatch):
    seen, may = [], threading.Event()

    def shut_down():
        may.wait(20)
        seen.append("over")

    monkeypatch.setattr(connecting, "_set_up", lambda address: None)
    monkeypatch.setattr(connecting, "_start", lambda: seen.append("begin"))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", shut_down)
    leave = connecting.connect("local")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            leave()
    threading.Timer(0.5, may.set).start()
    connecting.connect("local")()
    assert seen == ["begin", "over"] * 2


def interrupted(whom, timeout):
    raise KeyboardInterrupt
