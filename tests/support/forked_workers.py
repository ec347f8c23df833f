"""Workers of a Ray cluster that are forked from one process, which has imported what all need.

Each would take 3 s of a core to import torch, and 5 more for diffusers, and tests over Ray start a
hundred. The cluster's nodes run this file in the place of Ray's own `setup_worker.py`. Workers that
import for themselves are those of the clusters that commands and jobs of tests have.
"""

import json
import os
import socket
import sys
from contextlib import contextmanager

_SOCKET = "LONGREEL_TEST_FORKS"


@contextmanager
def listening(folder):
    """A socket, and what nodes are to be started with whose workers are asked for over it."""
    import pytest

    path = str(folder / "forks")
    with socket.socket(socket.AF_UNIX) as server, pytest.MonkeyPatch.context() as patch:
        server.bind(path)
        server.listen(64)  # whoever comes before anybody answers waits
        patch.setenv(_SOCKET, path)
        yield server, {"setup_worker_path": __file__}


@contextmanager
def forking(server):
    """The process that answers there. Nodes start before it: Ray gives them 30 s on any machine."""
    import subprocess
    from pathlib import Path

    from processes import ended_with_us

    import longreel

    process = subprocess.Popen(
        ended_with_us([sys.executable, "-P", __file__, f"--forks={server.fileno()}"]),
        env=os.environ | {"PYTHONPATH": str(Path(longreel.__file__).parents[1])},
        pass_fds=[server.fileno()],
        stdin=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def _ask() -> None:
    """By the process that a node has started, which ends: the worker says to the node who it is."""
    with socket.socket(socket.AF_UNIX) as ours:
        ours.connect(os.environ[_SOCKET])
        ours.sendall(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode())


def _wait_for_orders(server: socket.socket) -> tuple[list[str], dict[str, str], str]:
    """Returns in every fork, with what it was asked to be."""
    import gc
    import signal

    from longreel.models.importing import importing
    from longreel.parallel.process import settle

    settle()
    with importing():
        from diffusers import AutoencoderKLWan  # noqa: F401

        import longreel.parallel.ray_stage
        import longreel.pipeline.ray_backend  # noqa: F401
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that have ended
    while True:
        ours, _ = server.accept()
        with ours, ours.makefile("rb") as file:
            order = json.load(file)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            server.close()
            return order


def _become(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """What `setup_worker.py` does, in this process."""
    import argparse
    import runpy

    os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    parser = argparse.ArgumentParser()
    parser.add_argument("--serialized-runtime-env-context", default="{}")
    parser.add_argument("--language")
    known, sys.argv = parser.parse_known_args(arguments)
    assert not json.loads(known.serialized_runtime_env_context).get("env_vars"), known
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1].startswith("--forks="):
        fd = int(sys.argv[1].partition("=")[2])
        _become(*_wait_for_orders(socket.socket(fileno=fd)))
    else:
        _ask()
