"""Renders as jobs of a real `ray start --head` with Ray's token authentication on."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from built_wheel import build_wheel, environment_without_us
from command import TINY
from command import longreel as in_this_process
from ray_head import ray_head
from server import SMALL, until

from longreel.jobs.home.home import Home
from longreel.jobs.home.record import RenderRun
from longreel.jobs.mp4 import decode_mp4
from longreel.jobs.render import plan_render
from longreel.jobs.submit import driver, jobs_client, submit_cli
from longreel.jobs.submit.driver import _folder
from longreel.jobs.submit.errand import (
    Errand,
    read_errand,
    read_request,
    remembered,
    write_errand,
)
from longreel.jobs.submit.jobs_client import unpack_wheel

SETTINGS = [f"{key}={value}" for key, value in SMALL.items()] + [*TINY]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with ray_head(tmp_path_factory.mktemp("r")) as (url, environment):
        yield url, environment


@pytest.fixture(scope="module")
def longreel(cluster):
    return runner(*cluster)


def runner(url, environment):
    """Runs our command here, with another machine's cluster as far as it knows."""

    def run(*arguments, code=0):
        done = subprocess.run(
            [str(Path(sys.executable).parent / "longreel"), *map(str, arguments)],
            env=environment | {"RAY_API_SERVER_ADDRESS": url},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout.strip(), done.stderr.strip()

    return run


_IN_TURN = """
import sys
from longreel.jobs.cli import app
for line in sys.argv[1:]:
    app(line.split(), standalone_mode=False)
    print("\\0", end="")
"""


def in_turn(cluster, *lines):
    """What each of these commands says, run by one process: each of its own would import Ray."""
    url, environment = cluster
    done = subprocess.run(
        [sys.executable, "-P", "-c", _IN_TURN, *lines],
        env=environment | {"RAY_API_SERVER_ADDRESS": url},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split("\0")[:-1]


@pytest.mark.ray
def test_a_job_makes_the_render_that_this_process_makes(cluster, longreel, tmp_path):
    request = tmp_path / "request.yaml"
    lines = "".join(f"  {key}: {value}\n" for key, value in SMALL.items())
    request.write_text(
        f"prompt: a red circle\npreset: tiny\nframes: 41\nseed: 3\nsettings:\n{lines}"
    )
    video = tmp_path / "video.mp4"
    home = tmp_path / "home"
    out, _ = longreel(
        "submit", request, "--gpus", 2, "--home", home, "-o", video, "model.text_cache="
    )
    assert len([*decode_mp4(video)]) == 41
    here = Home(tmp_path / "here").create(
        plan_render("a red circle", preset="tiny", frames=41, seed=3, overrides=SETTINGS)
    )
    RenderRun(here).run()
    there = Home(tmp_path / "home").open(out)
    assert [s.path.read_bytes() for s in there.segments()] == [
        s.path.read_bytes() for s in here.segments()
    ]
    again = tmp_path / "again.mp4"
    said, logs, _ = in_turn(cluster, f"status {out}", f"logs {out}", f"download {out} -o {again}")
    assert said.startswith(f"{out}  done  job {out}-1")
    assert '"event": "started"' in logs
    assert again.read_bytes() == video.read_bytes()


@pytest.mark.ray
@pytest.mark.slow
def test_a_cancelled_job_keeps_what_is_final_and_can_be_gone_on_with(longreel, tmp_path):
    home = Home(tmp_path / "home")
    render, _ = longreel("submit", "a red circle", "--home", home.path, "--frames", 4001, *SETTINGS)
    (folder,) = until(home.renders, bool)
    assert folder.id == render
    until(lambda: folder.status().frames_done, bool)
    longreel("cancel", render)
    until(lambda: longreel("status", render)[0], lambda said: "  cancelled  " in said)
    status = folder.status()
    assert status.state == "paused"
    assert 0 < status.frames_done < 4001
    assert not list(folder.path.glob("**/.*.part"))
    before = [segment.path.read_bytes() for segment in folder.segments()]
    with folder.attempt() as attempt:
        assert attempt.frames_done == len([*folder.frames()])
    assert [s.path.read_bytes() for s in folder.segments()][: len(before)] == before
    _, said = longreel("watch", render, code=1)
    assert f"longreel resume --submit {render}" in said
    assert longreel("resume", "--submit", render)[0] == f"{render}-2"
    until(lambda: folder.status().frames_done, lambda frames: frames > status.frames_done)
    longreel("cancel", render)
    until(lambda: folder.status().state, lambda state: state == "paused")
    assert folder.status().attempt > status.attempt


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_that_has_no_longreel_runs_the_wheel_that_comes_with_the_job(
    tmp_path, tmp_path_factory
):
    (tmp_path / "tree").mkdir()
    wheel = build_wheel(tmp_path / "tree")
    bin_folder = environment_without_us(tmp_path / "environment")
    found = subprocess.run(
        [bin_folder / "python", "-P", "-c", "import longreel"], capture_output=True
    )
    assert b"No module named 'longreel'" in found.stderr
    short = tmp_path_factory.mktemp("r")  # names of sockets are
    with ray_head(short, bin_folder=bin_folder) as (url, environment):
        longreel = runner(url, environment)
        sent = ("--home", tmp_path / "home", "--frames", 9, "model.text_cache=", *SETTINGS)
        render, _ = longreel(
            "submit", "a red circle", "--gpus", 1, "--wheel", wheel, *sent, "--wait"
        )
        assert Home(tmp_path / "home").open(render).status().state == "done"
        _, said = longreel("resume", "--submit", render, code=2)
        assert "--wheel" in said
        again, _ = longreel("resume", "--submit", render, "--wheel", wheel)
        assert again == f"{render}-2"
        longreel("watch", render)


@pytest.mark.parametrize("name", ["missing.whl", "request.yaml"])
def test_what_is_no_wheel_is_refused(tmp_path, name):
    (tmp_path / "request.yaml").write_text("prompt: x")
    with pytest.raises(ValueError, match="is no wheel of longreel"):
        unpack_wheel(tmp_path / name, tmp_path / "code")


def test_an_errand_arrives_as_it_was_sent(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"pixels")
    errand = Errand(
        render="r",
        home=None,
        prompt="x",
        image=str(tmp_path / "picture.png"),
        prompt_at=[(1.5, "y")],
        overrides=["sampling.steps=2"],
        stages=2,
    )
    (tmp_path / "sent").mkdir()
    write_errand(errand, tmp_path / "sent")
    got = read_errand(tmp_path / "sent")
    assert Path(got.image).read_bytes() == b"pixels"
    assert (got.prompt_at, got.overrides, got.stages) == ([(1.5, "y")], ["sampling.steps=2"], 2)
    assert sorted(p.name for p in (tmp_path / "sent").iterdir()) == ["errand.json", "image.png"]


def test_a_preset_of_one_s_own_comes_along(tmp_path):
    (tmp_path / "mine.yaml").write_text("video: {frames: 5}\n")
    errand = Errand(render="r", home=None, prompt="x", preset=str(tmp_path / "mine.yaml"))
    (tmp_path / "sent").mkdir()
    write_errand(errand, tmp_path / "sent")
    got = read_errand(tmp_path / "sent")
    assert plan_render(got.prompt, preset=got.preset).config.video.frames == 5
    with pytest.raises(ValueError, match=r"preset=.*nowhere\.yaml is no file"):
        write_errand(replace(errand, preset="nowhere.yaml"), tmp_path / "sent")


def test_a_later_job_makes_the_folder_that_the_first_one_did_not(tmp_path):
    """As far as its request needs no file, which only the first job has."""
    first = Errand(render="r1", home=str(tmp_path), prompt="x", preset="tiny", overrides=SETTINGS)
    (tmp_path / "renders" / "r1" / "inputs").mkdir(parents=True)  # it was killed in between
    later = Errand(**json.loads(remembered(first)))
    assert _folder(later).manifest.prompt == "x"
    assert _folder(Errand(render="r1", home=str(tmp_path))).id == "r1"
    later = Errand(**json.loads(remembered(replace(first, render="r2", image="picture.png"))))
    with pytest.raises(ValueError, match=r"r2 has no folder in .* submit it anew"):
        _folder(later)


@pytest.fixture
def sent(monkeypatch):
    """What would go to a cluster."""
    sent = []

    class NoJobs:
        def __init__(self, address):
            pass

        def submit(self, errand, wheel):
            sent.append(errand)

    monkeypatch.setattr(jobs_client, "Jobs", NoJobs)
    return sent


def test_devices_are_the_cluster_s(sent, capsys):
    submit_cli.submit("a cat", ["model.device=cuda"], gpus=2, preset="tiny")
    submit_cli.submit("a cat", ["model.device=cuda:3"], preset="tiny")
    assert [errand.stages for errand in sent] == [2, None]
    assert capsys.readouterr().out.split() == [errand.render for errand in sent]


def test_what_a_job_could_not_make_is_refused_here(sent):
    wrong = ["parallel.backend=local", "parallel.gpus_per_stage=2"]
    with pytest.raises(ValueError, match="gpus_per_stage"):
        submit_cli.submit("a cat", wrong, preset="tiny")
    with pytest.raises(ValueError, match="no device"):
        submit_cli.submit("a cat", ["model.device=gpu"], preset="tiny")
    with pytest.raises(ValueError, match=r"--gpus=2 and parallel\.num_stages=4 are both"):
        submit_cli.submit("a cat", ["parallel.num_stages=4"], gpus=2, preset="tiny")
    assert not sent


def test_the_folder_of_renders_is_the_same_from_the_job_s_own_folder(sent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    submit_cli.submit("a cat", [], preset="tiny", home=Path("renders"))
    assert sent[0].home == str(tmp_path / "renders")


def test_the_id_is_out_before_the_wait_for_the_render_begins(sent, monkeypatch):
    """A script that reads it through a pipe may want to watch, or cancel, meanwhile."""
    out, seen = io.BytesIO(), []
    monkeypatch.setattr(submit_cli, "_watch", lambda *_: seen.append(out.getvalue().decode()))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="utf-8"))
    submit_cli.submit("a cat", [], preset="tiny", wait=True)
    assert seen == [f"{sent[0].render}\n"]


class PlayedJobs:
    """Ray's client, of one job."""

    status, message, log, lost = "RUNNING", "", "", False

    def __init__(self, address):
        self.stopped = []

    def list_jobs(self):
        if self.lost:
            raise OSError("the network is down\nand more")
        metadata = {"longreel_render": "r", "longreel_attempt": "1", "longreel_home": ""}
        job = SimpleNamespace(submission_id="r-1", metadata=metadata, message=self.message)
        return [SimpleNamespace(**vars(job), status=self.status)]

    def get_job_logs(self, job):
        return self.log

    def stop_job(self, job):
        self.stopped.append(job)


@pytest.fixture
def played(monkeypatch):
    sdk = SimpleNamespace(JobSubmissionClient=PlayedJobs)
    monkeypatch.setitem(sys.modules, "ray.dashboard.modules.job.sdk", sdk)
    return monkeypatch


def test_what_jobs_need_is_named_where_it_is_not_installed(played):
    played.setattr(jobs_client, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^Ray jobs need .*`serve`.* pip install"):
        submit_cli.status("r")


def test_what_has_ended_is_not_said_to_be_cancelled_now(played, capsys):
    submit_cli.cancel("r")
    played.setattr(PlayedJobs, "status", "SUCCEEDED")
    submit_cli.cancel("r")
    assert capsys.readouterr().out.splitlines() == ["r is being cancelled", "r is done"]


def test_why_a_job_has_failed_is_said_where_it_is_looked_at(played, tmp_path, capsys):
    errand = Errand(
        render="r", home="home", prompt="x", preset="tiny", overrides=["model.checkpoint=/nowhere"]
    )
    write_errand(errand, tmp_path)
    played.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        driver.main()
    assert ended.value.code == 3
    said = "Job entrypoint command failed with exit code 3, last available logs:\n..."
    for name, value in {
        "status": "FAILED",
        "message": said,
        "log": capsys.readouterr().out,
    }.items():
        played.setattr(PlayedJobs, name, value)
    submit_cli.status("r")
    assert "  model.checkpoint=/nowhere is no file" in capsys.readouterr().out
    with pytest.raises(OSError, match=r"r is failed: model\.checkpoint=/nowhere is no file"):
        submit_cli.watch("r")
    played.setattr(PlayedJobs, "log", "")  # of one that had no time to say anything
    submit_cli.status("r")
    assert capsys.readouterr().out.splitlines()[-1].strip() == said.splitlines()[0]


def test_a_network_that_fails_for_a_while_ends_no_watch(played, capsys, caplog):
    """And one that does not come back leaves the job to be followed again."""
    seconds = []
    clock = SimpleNamespace(monotonic=lambda: sum(seconds), sleep=seconds.append)
    played.setattr(jobs_client, "time", clock)
    failures = [True] * 300 + [False] + [True] * 300

    def is_lost(jobs):
        if not failures:
            played.setattr(PlayedJobs, "status", "SUCCEEDED")
        return bool(failures) and failures.pop()

    played.setattr(PlayedJobs, "lost", property(is_lost))
    submit_cli.watch("r")
    assert capsys.readouterr().err.splitlines() == ["running", "done"]
    assert [record.getMessage() for record in caplog.records] == [
        "the network is down; trying on for 600 s"
    ] * 2
    played.setattr(PlayedJobs, "lost", True)
    with pytest.raises(
        OSError, match=r"not answered .*is down\).* goes on, and `longreel watch r`"
    ):
        submit_cli.watch("r")


def test_an_interrupted_watch_says_that_the_job_goes_on(played):
    played.setattr(jobs_client.Jobs, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt) as stopped:
        submit_cli.watch("r")
    assert stopped.value.__notes__ == [
        "the job itself goes on, and `longreel watch r` follows it again"
    ]


def interrupted(jobs, render):
    raise KeyboardInterrupt


def test_a_request_that_nobody_answers_ends(played):
    """As Ray itself sets no limit to it."""
    asked = {}

    class Asking(PlayedJobs):
        def _do_request(self, method, endpoint, **more):
            asked.update(more)

    played.setattr(sys.modules["ray.dashboard.modules.job.sdk"], "JobSubmissionClient", Asking)
    jobs_client.Jobs()._client._do_request("GET", "/api/jobs/", data=None)
    assert asked == {"data": None, "timeout": 60.0}


def test_where_the_file_goes_is_looked_at_before_anything_is_sent(sent, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        submit_cli.submit("a cat", [], preset="tiny", output=tmp_path / "nowhere" / "a.mp4")
    with pytest.raises(ValueError, match=r"\.mp4"):
        submit_cli.submit("a cat", [], preset="tiny", output=tmp_path / "a.gif")
    assert not sent


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no prompt"),
        ("prompt: [x]", "no prompt"),
        ("prompt: x\nfames: 3", "fames"),
        ("prompt: x\nsettings: 3", "^settings in .* lines"),
        ("prompt: x\nprompt_at:\n  soon: y", r"^prompt_at in .* `12\.5: a dog runs`"),
        ("prompt: x\nprompt_at:\n  2.5:", r"^prompt_at in .* `12\.5: a dog runs`"),
        (
            "prompt: x\nseed: 1\nprompt: y",
            r"request\.yaml sets prompt twice, and the",
        ),
        ("prompt: x\nsettings:\n  video.fps: 8\n  video.fps: 9", r"sets video\.fps twice"),
        ("prompt: x\nprompt_at:\n  1.5: y\n  1.50: z", r"sets 1\.5 twice"),
        ("prompt: !!python/object/apply:os.system [ls]", "cannot be read"),
    ],
)
def test_a_request_file_that_is_wrong_is_refused(tmp_path, text, word):
    (tmp_path / "request.yaml").write_text(text)
    with pytest.raises(ValueError, match=word):
        read_request(tmp_path / "request.yaml")


@pytest.mark.ray
def test_a_cluster_that_cannot_be_reached_is_said():
    done = in_this_process("status", "x", "--address", "127.0.0.1:9")
    assert done.code == 2
    assert "dashboard" in done.message
