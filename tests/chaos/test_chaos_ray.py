"""Over Ray whole nodes and private clusters may go, and the video is the same."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Event, Thread

import numpy as np
import pytest
from processes import alive, all_gone, command, descendants, wait_until
from ray.util.placement_group import placement_group, remove_placement_group
from ray_cluster import actors, cluster_of, frames_of, free_cpus, make_plan, over_ray
from trials import Act, Trial, draw_over_ray, make_truth, run_trial
from victim import DONE, Hurt

from longreel.jobs.render import stream_chunks
from longreel.parallel import placement

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


@pytest.mark.slow
def test_a_private_cluster_ends_with_its_driver(truth, tmp_path):
    trial = Trial(tmp_path, plan("causal"))
    changes = {"parallel.backend": "ray", "parallel.num_stages": 2}
    hurt = Hurt(what="stop", place="denoise", nth=12)
    with trial.going(Act(hurts=(hurt,), changes=changes)) as driver:
        assert wait_until(lambda: trial.log.count("strikes:"), 120), trial.log
        pids = descendants(driver.pid)
        assert any("ray::StageActor" in command(pid) for pid in pids)
        # the agents that watch a node for Ray look for its end once in a while
        ours = [pid for pid in pids if "agent" not in command(pid).lower()]
        os.kill(driver.pid, signal.SIGKILL)
        gone = all_gone(ours, within_s=30.0)
        left = {pid: command(pid) for pid in pids if alive(pid)}
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert gone, left
    assert trial.go() == DONE
    trial.check(truth("causal"))


LONG = 321  # frames: the actors of a lost node live on for two seconds


@cache
def long_truth():
    with stream_chunks(make_plan("causal", frames=LONG)) as chunks:
        return np.concatenate([chunk.frames for chunk in chunks])


def spread_plan(place_timeout_s, num_stages=3):
    """On nodes of two CPUs: three stages on two of them, five on three."""
    more = ["checkpoint.every_s=0.1", "parallel.transfer_timeout_s=4", "parallel.backend=ray"]
    more += [f"parallel.place_timeout_s={place_timeout_s}"]
    return make_plan("causal", *more, frames=LONG, num_stages=num_stages)


def other_node(cluster):
    """That is not the head; another, if it was lost."""
    others = [node for node in cluster.list_all_nodes() if not node.head]
    return others[0] if others else add_node(cluster)


def add_node(cluster):
    return cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20)


@pytest.mark.slow
@pytest.mark.parametrize("comes_back", [True, False])
def test_a_render_outlives_a_node(cluster, comes_back, caplog):
    other = other_node(cluster)

    def lose(backend):
        cluster.remove_node(other, allow_graceful=False)
        lost.set()

    lost = Event()
    with ThreadPoolExecutor(1) as pool:  # Ray starts nodes from the main thread alone
        ours = pool.submit(frames_of, spread_plan(120 if comes_back else 3), lose)
        assert lost.wait(120)
        if comes_back:
            add_node(cluster)
    assert np.array_equal(ours.result(), long_truth())
    assert "was lost" in caplog.text
    assert ("layers are split anew over the devices that are left" in caplog.text) != comes_back
    left = CPUS if comes_back else CPUS - 2
    assert free_cpus(left) == left
    assert wait_until(lambda: not actors(), 20)


@pytest.mark.slow
def test_a_render_outlives_a_node_that_goes_while_layers_are_split_anew(
    cluster, caplog, monkeypatch
):
    others = [other_node(cluster), add_node(cluster)]
    assert wait_until(lambda: free_cpus(CPUS + 2) == CPUS + 2, 30)
    find_fewer = placement.find_fewer

    def lose(backend=None):
        cluster.remove_node(others.pop(), allow_graceful=False)

    def find_and_lose(*args, **options):
        found = find_fewer(*args, **options)
        if others:
            lose()
        return found

    monkeypatch.setattr(placement, "find_fewer", find_and_lose)
    assert np.array_equal(frames_of(spread_plan(3, num_stages=5), lose), long_truth())
    assert not others
    assert caplog.text.count("split anew") == 2
    assert free_cpus(2) == 2
    assert wait_until(lambda: not actors(), 20)


@pytest.mark.slow
def test_a_render_outlives_its_only_node(cluster, caplog):
    """Decoding has nowhere else to go, and waits for the node in its place as stages do."""
    other = other_node(cluster)
    head = placement_group([{"CPU": 2.0, "node:__internal_head__": 0.001}])
    assert head.wait(30)
    assert wait_until(lambda: free_cpus(2) == 2, 30)

    def lose(backend):
        assert len({member.node for member in backend._crew.members}) == 1
        cluster.remove_node(other, allow_graceful=False)
        lost.set()

    lost = Event()
    with ThreadPoolExecutor(1) as pool:
        ours = pool.submit(frames_of, spread_plan(120, num_stages=2), lose)
        assert lost.wait(120)
        Event().wait(30)
        add_node(cluster)
    remove_placement_group(head)
    assert np.array_equal(ours.result(), long_truth())
    assert "split anew" not in caplog.text
    assert wait_until(lambda: not actors(), 20)


@pytest.mark.slow
def test_a_node_that_wakes_after_it_was_given_up_changes_nothing(cluster, caplog):
    other = other_node(cluster)
    assert wait_until(lambda: free_cpus(CPUS) == CPUS, 30)

    def stop(backend):
        raylet = other.all_processes["raylet"][0].process.pid
        pids = [*descendants(raylet), raylet]
        assert {member.pid for member in backend._crew.members} & {*pids}
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        wakes.append(Thread(target=wake, args=(pids,)))
        wakes[0].start()

    def wake(pids):
        assert wait_until(lambda: "split anew" in caplog.text, 120)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    wakes = []
    assert np.array_equal(frames_of(spread_plan(3), stop), long_truth())
    wakes[0].join(120)
    assert "split anew" in caplog.text
    cluster.remove_node(other, allow_graceful=False)
    assert wait_until(lambda: not actors(), 30)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(DRAWN))
def test_nothing_is_lost_wherever_a_render_over_ray_is_hurt(seed, cluster, truth, tmp_path):
    other_node(cluster)
    policy = POLICIES[seed % len(POLICIES)]
    acts = draw_over_ray(seed, over_ray(cluster))
    run_trial(Trial(tmp_path, plan(policy)), acts, truth(policy))
    assert wait_until(lambda: not actors(), 20)
