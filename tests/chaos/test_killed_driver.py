"""Over Ray a driver that is killed takes its actors along; another makes the same video."""

import pytest
import ray
from processes import wait_until
from ray_cluster import actors, free_cpus, make_plan, over_ray
from trials import Act, Trial, make_truth
from victim import DONE, KILLED, Hurt

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("tiny_archs")]


def test_a_driver_that_is_killed_takes_its_actors_along_and_another_goes_on(two_nodes, tmp_path):
    plan = make_plan("causal", "checkpoint.every_s=0.01", frames=81)
    truth = make_truth(tmp_path / "truth", plan)
    trial = Trial(tmp_path, plan)
    hurt = Hurt(what="kill", place="rename segment", nth=4)
    assert trial.go(Act(hurts=(hurt,), changes=over_ray(two_nodes))) == KILLED
    assert wait_until(lambda: not actors(), 20)
    assert free_cpus() == 6
    groups = ray.util.placement_group_table().values()
    assert {group["state"] for group in groups} == {"REMOVED"}
    assert trial.go(Act(hurts=(), changes=over_ray(two_nodes, num_stages=3))) == DONE
    trial.check(truth)
    assert "checkpoint" in [event["event"] for event in trial.events()]
    assert not actors()
