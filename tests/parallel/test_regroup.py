"""Devices that are lost for good, and others while layers are split anew; played, without Ray."""

import threading
import time
from types import SimpleNamespace

import pytest
from ray_cluster import make_plan

from longreel.parallel import crew as crews
from longreel.parallel import placement
from longreel.parallel.crew import NoReplacement
from longreel.parallel.errors import ChainBroken
from longreel.parallel.ray_chain import ChainParts, Devices, RayChain
from longreel.parallel.ray_worker import WorkerLost
from longreel.pipeline.backend import GivenUp
from longreel.pipeline.ray_backend import RayBackend

pytestmark = pytest.mark.usefixtures("tiny_archs")
DONE = object()


class PlayedCrew:
    """Processes that come up, or do not."""

    def __init__(self, is_there):
        self.is_there, self.layout, self.loaded, self.closed = is_there, None, set(), False

    @property
    def members(self):
        if not self.is_there:
            raise NoReplacement("a device is gone")
        return ("a member",)

    def close(self):
        self.closed = True


class PlayedPlacement:
    device = "cpu"

    def remove(self):
        pass


class Played:
    """A chain over a backend whose cluster has these fates, one for each try to split it anew:
    so many devices, an error of `place`, or a crew that does not come up."""

    def __init__(self, monkeypatch, fates, repairs, begins=False):
        self.fates, self.crews, self.asked, self.heard = [*fates], [PlayedCrew(begins)], [], []
        self.backend = backend = object.__new__(RayBackend)
        backend._moving, backend._tiles = threading.RLock(), None
        backend._stays = backend._ended = False
        plan = make_plan("dualparal", num_stages=3, backend="ray")
        backend._take_on(plan, threading.Event(), self.heard.append)
        backend._placement, backend._crew = PlayedPlacement(), self.crews[0]
        backend._begin_crew = lambda: self.crews[-1]
        backend._replace_worker = lambda: None
        backend.measured = lambda: None
        monkeypatch.setattr(placement, "find_fewer", self.find_fewer)
        monkeypatch.setattr(placement, "place", self.place)
        self.chain = RayChain(
            Devices(crew=self.crews[0], slices=(), device="cpu"),
            ChainParts(stage=None, windows=None, stepper=None),
            timeout_s=1.0,
            repairs=repairs,
            regroup=backend._regroup,
            hear=self.heard.append,
        )
        self.chain._epoch = lambda schedule, wanted: iter([DONE])

    def find_fewer(self, parallel, kind, *, timeout_s, check):
        check()
        self.fate = self.fates.pop(0)
        if isinstance(self.fate, ChainBroken):
            raise self.fate
        return placement.fewer(parallel, self.fate) if isinstance(self.fate, int) else parallel

    def place(self, layout, device, **options):
        self.asked.append(layout.num_stages)
        if isinstance(self.fate, ValueError):
            raise self.fate
        self.crews.append(PlayedCrew(isinstance(self.fate, int)))
        return PlayedPlacement()

    def run(self):
        return [*self.chain.run(None)]


GONE, TAKEN = None, ValueError("2 of 2 were taken")  # fates besides a number of devices


@pytest.mark.parametrize("lost", [GONE, TAKEN])
def test_devices_that_are_lost_while_layers_are_split_anew_are_borne(monkeypatch, lost):
    played = Played(monkeypatch, [lost, lost, 2], repairs=3)
    assert played.run() == [DONE]
    assert (played.asked, played.chain.is_well) == ([3, 3, 2], True)
    assert sum("split anew over the devices that are left" in words for words in played.heard) == 3
    assert [crew.closed for crew in played.crews[:-1]] == [True] * (len(played.crews) - 1)
    assert not played.crews[-1].closed


@pytest.mark.parametrize("lost", [GONE, TAKEN])
@pytest.mark.parametrize("repairs", [0, 2])
def test_they_are_borne_as_often_as_repairs_say(monkeypatch, lost, repairs):
    played = Played(monkeypatch, [lost] * 9, repairs)
    with pytest.raises(ChainBroken, match="taken" if repairs and lost else "is gone"):
        played.run()
    assert len(played.asked) == len(played.heard) == repairs
    assert all(crew.closed for crew in played.crews[:1])


def test_devices_that_are_lost_for_good_are_one_failure_with_what_that_broke(monkeypatch):
    played = Played(monkeypatch, [2], repairs=1)
    played.chain._bear(ChainBroken("a stage was lost"))
    assert played.run() == [DONE]


def test_what_cannot_be_repaired_ends_the_render_for_all_who_wait(monkeypatch):
    nothing = ChainBroken("no CPU is left on the cluster")
    played = Played(monkeypatch, [GONE, nothing], repairs=9)
    with pytest.raises(ChainBroken, match="no CPU is left"):
        played.run()
    played.backend._worker = object()
    with pytest.raises(ChainBroken, match="no CPU is left"):  # who reads frames meanwhile
        played.backend._revive(WorkerLost("it is gone", played.backend._worker))


@pytest.mark.parametrize(
    ("is_there", "comes_up", "words"),
    [
        (lambda at_s: at_s > 0.6, True, ""),
        (lambda at_s: at_s > 9.0, True, "1 of 1 devices are gone"),
        (lambda at_s: True, False, "no process"),
        (lambda at_s: at_s % 0.4 > 0.2, False, "1 of 1 devices are gone"),
    ],
    ids=["it comes", "it is gone", "it is there", "it comes and goes"],
)
def test_a_device_is_waited_for_as_long_as_asked_and_then_its_process(
    monkeypatch, is_there, comes_up, words
):
    """The process of one that is there has a time of its own: it was counted from the beginning.
    And a device that comes and goes was waited for without an end."""
    begun_s = time.monotonic()

    def is_whole():
        assert time.monotonic() - begun_s < 10, "it is waited for without an end"
        return is_there(time.monotonic() - begun_s)

    def wait(refs, num_returns, timeout):
        time.sleep(timeout)
        return (refs if comes_up and is_whole() else []), []

    where = SimpleNamespace(remote=lambda: "where it is")
    monkeypatch.setattr(crews, "ray", SimpleNamespace(wait=wait))
    monkeypatch.setattr(crews, "result", lambda ref: ("a node", "", 1))
    monkeypatch.setattr(crews, "_START_TIMEOUT_S", 0.3)
    monkeypatch.setattr(crews.Crew, "_begin", lambda crew, bundle: SimpleNamespace(where=where))
    played = SimpleNamespace(layout=SimpleNamespace(num_devices=1), is_whole=is_whole)
    crew = crews.Crew(played, place_timeout_s=2.0)
    if words:
        with pytest.raises(NoReplacement, match=words):
            _ = crew.members
    else:
        assert len(crew.members) == 1


def test_several_workers_on_gpus_begin_when_stages_have_theirs():
    """Ray gave both of them GPU 0, where the second stage found no room."""
    began = []

    class Crew(PlayedCrew):
        members = property(lambda crew: began.append("stages are up") or ("a member",))

    class Backend(RayBackend):
        def _place(self):
            return SimpleNamespace(device="cuda", has_cluster=False)

        def _begin_crew(self):
            return Crew(is_there=True)

        def _begin_worker(self):
            began.append("a worker")
            return SimpleNamespace(renew=began.append)

        def _begin_tiles(self, others=()):
            began.append("its others")

        def _check_files(self):
            pass

    tiles = ("model.vae_tile=64", "video.height=64", "video.width=96")
    plan = make_plan("whole", *tiles, frames=9, gpus_per_stage=2, backend="ray")
    backend = Backend(plan, threading.Event())
    assert began == ["a worker", "stages are up", "its others"]
    began.clear()
    backend._build_codec = lambda: "renewed"
    backend._take_over_worker()
    assert began == ["stages are up", "renewed", "its others"]


def test_who_gives_up_meanwhile_ends_it(monkeypatch):
    played = Played(monkeypatch, [GONE] * 9, repairs=9)
    played.backend._given_up.set()
    with pytest.raises(GivenUp):
        played.run()
