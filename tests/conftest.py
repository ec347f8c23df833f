"""One thread per process, set before torch is imported: tiny tensors are far slower with two."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import atexit
import gc
import shutil
import signal
import tempfile

import pytest
import torch

torch.set_num_threads(1)
gc.disable()  # until all tests are collected: nothing of what is imported is garbage

os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="longreel-tests-")  # where renders are kept
atexit.register(shutil.rmtree, os.environ["XDG_DATA_HOME"], ignore_errors=True)

# a job in the background has Ctrl-C ignored, and so would every process the tests start and stop
for _stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(_stop) is signal.SIG_IGN:
        signal.signal(
            _stop, signal.default_int_handler if _stop == signal.SIGINT else signal.SIG_DFL
        )


def pytest_collection_modifyitems(items):
    """Files whose tests need the server are the first, as they take longest.
    The cluster of two nodes comes last: it stays to the end, and a process has one at a time."""
    served = {item.path for item in items if "server" in item.fixturenames}
    items.sort(key=lambda item: ("two_nodes" in item.fixturenames, item.path not in served))


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One `longreel serve` for all tests that only need one. Of what its page asks for, which has
    fields for a few settings only, a video begins with its first frames."""
    from server import serving

    pages = ["blocks.policy=forcing", "blocks.size=2", "sampling.steps=4", "video.fps=8"]
    with serving(tmp_path_factory.mktemp("server") / "home", *pages) as server:
        yield server


@pytest.fixture(scope="session")
def http(server):
    import httpx

    with httpx.Client(base_url=server.url, timeout=120) as http:
        yield http


@pytest.fixture
def tiny_archs(monkeypatch):
    """Tiny models of tests can be named as model.arch."""
    from tiny_blocks import ARCHS

    from longreel.models import arch as archs

    for name, arch in ARCHS.items():
        monkeypatch.setitem(archs.ARCHS, name, arch)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Finished renders, of which tests take copies."""
    from finished import Finished

    return Finished(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def two_nodes():
    """One cluster for all tests that only need one: two nodes of three CPUs."""
    from ray_cluster import two_nodes

    with two_nodes() as cluster:
        yield cluster
