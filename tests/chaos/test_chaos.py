"""A render that is killed, stopped, starved and hurt wherever it stands makes the same video."""

import json
import shutil
import subprocess
from functools import cache

import full_disk
import pytest
from ray_cluster import make_plan
from tiny_blocks import shallow
from trials import CONTEXT, LIMIT_S, Act, Trial, draw, make_truth, run_trial
from victim import Hurt

pytestmark = pytest.mark.usefixtures("tiny_archs")
FRAMES = {"dualparal-grouped": 45, "forcing": 33, "causal": 33}
DRAWN = 170
EDITS = [("redo", 12, 14), ("extend", 16)]


def plan(policy, *more):
    settings = shallow(policy), "checkpoint.every_s=0.01", *more
    return make_plan(policy, *settings, frames=FRAMES[policy])


def act(what, place, nth=0, *, corrupt="", lasts=1, stages=1):
    hurt = Hurt(what=what, place=place, nth=nth, lasts=lasts)
    return Act(hurts=(hurt,), changes={"parallel.num_stages": stages}, corrupt=corrupt)


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """By policy and edit, made when it is first asked for."""

    @cache
    def of(policy, edit=()):
        finished = of(policy).render if edit else None
        return make_truth(tmp_path_factory.mktemp(policy), plan(policy), edit, finished)

    return of


DOZEN = [
    ("causal", act("kill", "rename journal")),
    ("causal", act("kill", "half", 2)),
    ("causal", act("kill", "denoise", 14, corrupt="flip"), act("kill", "prompt", 1, stages=2)),
    ("causal", act("kill", "rename keys", 1, corrupt="cut")),
    ("causal", act("stop", "rename checkpoint", 1)),
    ("causal", act("full", "open init", lasts=2)),
    ("forcing", act("kill", "rename checkpoint", 1, corrupt="truncate", stages=3)),
    ("forcing", act("wake", "rename segment", 1)),
    ("forcing", act("kill", "rmtree folder")),
    ("dualparal-grouped", act("kill", "decode", 9, stages=2)),
    ("dualparal-grouped", act("stop", "append", 4)),
    ("dualparal-grouped", act("full", "rename segment", 2, lasts=10**6)),
]


@pytest.mark.parametrize("case", DOZEN, ids=lambda case: f"{case[0]}-{case[1].hurts[0]}")
def test_a_render_that_was_hurt_is_as_if_nothing_had_happened(case, truth, tmp_path):
    policy, *acts = case
    struck = run_trial(Trial(tmp_path, plan(policy)), acts, truth(policy))
    assert struck == len(acts), "a blow came too late to be one"


@pytest.mark.parametrize(
    ("policy", "edit", "hurt"),
    [
        ("causal", ("redo", 12, 14), act("kill", "rename segment", 1)),
        ("forcing", ("extend", 16), act("stop", "append")),
    ],
    ids=["redo", "extend"],
)
def test_an_edit_that_was_hurt_is_as_if_nothing_had_happened(policy, edit, hurt, truth, tmp_path):
    trial = Trial(tmp_path, plan(policy), edit, truth(policy).render)
    assert run_trial(trial, [hurt], truth(policy, edit)) == 1, "the blow came too late to be one"


# what full_disk does itself, which not every system lets
MOUNTED = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs"]


@pytest.fixture(scope="module")
def starved(tmp_path_factory):
    disk, elsewhere = tmp_path_factory.mktemp("disk"), tmp_path_factory.mktemp("elsewhere")
    if not shutil.which("unshare") or subprocess.run([*MOUNTED, disk]).returncode:
        pytest.skip("needs `unshare --map-root-user --mount`, to mount a small disk")
    process = CONTEXT.Process(target=full_disk.go, args=(disk, elsewhere), daemon=True)
    process.start()
    process.join(LIMIT_S)
    assert process.exitcode == 0
    return json.loads((elsewhere / "results.json").read_text())


def test_a_render_waits_for_room_and_goes_on(starved):
    whole = starved["truth"]["digests"]
    assert starved["while full"]["state"] == "running"
    assert 0 < len(starved["while full"]["digests"]) < len(whole)
    assert starved["after"] == {"state": "done", "reason": "", "digests": whole, "parts": []}


def test_a_render_that_finds_no_room_ends_with_the_reason_and_is_resumed(starved):
    assert "No space left on device" in starved["error"]
    left = starved["left"]
    assert left["state"] in ("failed", "paused")  # a full disk may not even take the word
    assert left["parts"] == []
    assert left["digests"] == starved["truth"]["digests"][: len(left["digests"])]
    assert starved["resumed"] == starved["truth"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_nothing_of_an_edit_is_lost_wherever_it_is_hurt(seed, truth, tmp_path):
    policy, edit = [*FRAMES][seed % len(FRAMES)], EDITS[seed // len(FRAMES) % len(EDITS)]
    known = truth(policy, edit)
    trial = Trial(tmp_path, plan(policy), edit, truth(policy).render)
    run_trial(trial, draw(seed, known.seen), known)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(DRAWN))
def test_nothing_is_lost_wherever_it_is_hurt(seed, truth, tmp_path):
    policy = [*FRAMES][seed % len(FRAMES)]
    known = truth(policy)
    run_trial(Trial(tmp_path, plan(policy)), draw(seed, known.seen), known)
