"""A node that goes in mid-render takes no frame with it, whether another comes or not."""

import threading

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster
from ray_cluster import quiet
from tiny_blocks import ARCHS, overrides

from longreel.jobs.render import plan_render, stream_chunks
from longreel.models import arch as archs

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_STORE = 100 * 2**20
# a node is known to be dead after two seconds; the default is fourteen
_QUICK = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


@pytest.fixture
def cluster():
    """A head that has one CPU, and the driver."""
    with quiet():
        nodes = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "object_store_memory": _STORE,
                "_system_config": _QUICK,
            },
        )
        try:
            yield nodes
        finally:
            ray.shutdown()
            nodes.shutdown()


@pytest.mark.parametrize("comes_back", [True, False], ids=["replaced", "not replaced"])
@pytest.mark.parametrize("policy", ["causal", "dualparal-grouped"])
def test_a_node_is_lost(cluster, comes_back, policy, monkeypatch, caplog):
    for name, arch in ARCHS.items():
        monkeypatch.setitem(archs.ARCHS, name, arch)
    second = cluster.add_node(num_cpus=2, object_store_memory=_STORE)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    settings = overrides(policy, "model.device=cpu", "checkpoint.every_s=0.1")
    with stream_chunks(plan_render("a cat", frames=161, overrides=settings)) as chunks:
        expected = np.concatenate([chunk.frames for chunk in chunks])
    over_ray = [
        "parallel.backend=ray",
        "parallel.num_stages=3",
        "parallel.transfer_timeout_s=20",
        f"parallel.place_timeout_s={60 if comes_back else 5}",
        f"parallel.address={cluster.address}",
    ]
    lost, helpers = threading.Event(), []

    def lose():
        cluster.remove_node(second, allow_graceful=False)
        if comes_back:
            cluster.add_node(num_cpus=2, object_store_memory=_STORE)

    def report(what, done, total, note=""):
        if what == "denoise" and done >= 10 and not lost.is_set():
            lost.set()
            helpers.append(threading.Thread(target=lose))
            helpers[0].start()

    plan = plan_render("a cat", frames=161, overrides=[*settings, *over_ray])
    with stream_chunks(plan, report) as chunks:
        frames = np.concatenate([chunk.frames for chunk in chunks])
    helpers[0].join()
    assert np.array_equal(frames, expected)
    assert "was lost at block" in caplog.text
    assert ("layers are split anew" in caplog.text) != comes_back
