"""Over Ray a driver, its actors and whole nodes may go, and the video is the same."""

import os
import signal
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import ray
from ray_cluster import all_gone, cluster_of, frames_of, free_cpus, make_plan
from trials import Act, Trial, draw_over_ray, make_truth, run_trial
from victim import DONE, KILLED, Hurt, wait_until

from longreel.jobs.render import stream_chunks

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("tiny_archs")]
CPUS = 4
# a node is found dead in seconds, but not because it had to wait for a core
HEALTH = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 3,
}
POLICIES = ("dualparal-grouped", "forcing", "causal")
FRAMES = 81
DRAWN = 30


@pytest.fixture(scope="module")
def cluster():
    with cluster_of({"num_cpus": 2}, {"num_cpus": 2}, **HEALTH) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    @cache
    def of(policy):
        return make_truth(tmp_path_factory.mktemp(policy), plan(policy))

    return of


def plan(policy, *more):
    return make_plan(policy, "checkpoint.every_s=0.01", *more, frames=FRAMES)


def over_ray(cluster, num_stages=2):
    return {
        "parallel.backend": "ray",
        "parallel.address": cluster.address,
        "parallel.num_stages": num_stages,
        "parallel.transfer_timeout_s": 4.0,
    }


def actors_of(cluster):
    """Processes of actors, as Ray names them."""
    raylets = {node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()}
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            name = (path / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent in raylets and name.startswith((b"ray::StageActor", b"ray::Host")):
            found.append(int(path.name))
    return found


def test_a_driver_that_is_killed_takes_its_actors_along_and_another_goes_on(
    cluster, truth, tmp_path
):
    trial = Trial(tmp_path, plan("causal"))
    act = Act(hurts=(Hurt(what="kill", place="rename segment", nth=4),), changes=over_ray(cluster))
    assert trial.go(act) == KILLED
    assert wait_until(lambda: not actors_of(cluster), 20)
    assert free_cpus(CPUS) == CPUS
    groups = ray.util.placement_group_table().values()
    assert {group["state"] for group in groups} == {"REMOVED"}
    assert trial.go(Act(hurts=(), changes=over_ray(cluster, num_stages=3))) == DONE
    trial.check(truth("causal"))
    assert "checkpoint" in [event["event"] for event in trial.events()]
    assert not actors_of(cluster)


def test_a_private_cluster_ends_with_its_driver(truth, tmp_path):
    trial = Trial(tmp_path, plan("causal"))
    changes = {"parallel.backend": "ray", "parallel.num_stages": 2}
    hurt = Hurt(what="stop", place="denoise", nth=12)
    with trial.going(Act(hurts=(hurt,), changes=changes)) as driver:
        assert wait_until(lambda: trial.log.count("strikes:"), 120), trial.log
        pids = descendants(driver.pid)
        assert len(pids) > 4
        os.kill(driver.pid, signal.SIGKILL)
        assert all_gone(pids, within_s=30.0)
    assert trial.go() == DONE
    trial.check(truth("causal"))


def descendants(pid):
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_render_outlives_a_node(cluster, comes_back, caplog):
    stays = [node for node in cluster.list_all_nodes() if node.head]

    def lose(backend):
        (other,) = [node for node in cluster.list_all_nodes() if node not in stays]
        cluster.remove_node(other, allow_graceful=False)
        if comes_back:
            cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20)

    more = ["checkpoint.every_s=0.1", "parallel.transfer_timeout_s=4"]
    more += [f"parallel.place_timeout_s={120 if comes_back else 3}", "parallel.backend=ray"]
    frames = 321  # the actors of a lost node live on for two seconds
    ours = frames_of(make_plan("causal", *more, frames=frames, num_stages=3), lose)
    assert "was lost" in caplog.text
    with stream_chunks(make_plan("causal", frames=frames)) as chunks:
        assert np.array_equal(ours, np.concatenate([chunk.frames for chunk in chunks]))
    assert ("layers are split anew over the devices that are left" in caplog.text) != comes_back
    left = CPUS if comes_back else CPUS - 2
    assert free_cpus(left) == left
    assert wait_until(lambda: not actors_of(cluster), 20)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(DRAWN))
def test_nothing_is_lost_wherever_a_render_over_ray_is_hurt(seed, cluster, truth, tmp_path):
    if len(cluster.list_all_nodes()) < 2:
        cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20)
    policy = POLICIES[seed % len(POLICIES)]
    acts = draw_over_ray(seed, over_ray(cluster))
    run_trial(Trial(tmp_path, plan(policy)), acts, truth(policy))
    assert wait_until(lambda: not actors_of(cluster), 20)
