"""A render that is given up while it waits for devices ends at once; played, without a cluster."""

import threading
import time

import pytest
from ray_cluster import make_plan

from longreel.jobs import cluster
from longreel.jobs.home.home import Home
from longreel.jobs.home.record import RenderRun
from longreel.jobs.render import stream_chunks
from longreel.parallel import placement

pytestmark = pytest.mark.usefixtures("tiny_archs")
WAIT_S = 20.0


@pytest.fixture
def waits(monkeypatch):
    """Set once a render waits for devices, which do not come."""
    begun = threading.Event()

    def place(*args, check, **options):
        begun.set()
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            check()
            time.sleep(0.01)
        raise ValueError("they did not come")

    monkeypatch.setattr(placement, "place", place)
    monkeypatch.setattr(cluster, "connect", lambda *address: lambda: None)
    return begun


def plan():
    return make_plan("dualparal", "parallel.backend=ray", frames=17)


def given_up(work, give_up, waits):
    """What the work returns, when it is given up while it waits."""
    came = []
    thread = threading.Thread(target=lambda: came.append(work()), daemon=True)
    thread.start()
    assert waits.wait(WAIT_S)
    give_up()
    thread.join(2 * WAIT_S)
    (outcome,) = came
    return outcome


def test_a_stream_that_is_closed_has_nothing_more(waits):
    stream = stream_chunks(plan())
    assert given_up(lambda: list(stream), stream.close, waits) == []


def test_a_run_that_is_stopped_is_paused(waits, tmp_path):
    run = RenderRun(Home(tmp_path).create(plan()))
    assert given_up(run.run, run.stop, waits).state == "paused"
