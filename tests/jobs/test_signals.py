"""A signal stops a command in order, once, and within a step."""

import os
import re
import signal
import subprocess
import sys
import threading

import pytest
from command import SMALL, files_in, longreel

from longreel.configs import load
from longreel.jobs.home.attempt import Attempt
from longreel.jobs.render import plan_render
from longreel.pipeline.parts import encode_texts

GOES_ON = r"longreel: stopped; `longreel resume [0-9a-f-]+` goes on from frame \d+"
WAIT_S = 120  # for what takes a second


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_second_stop_does_not_cut_the_clean_up_short(folder, monkeypatch):
    before, end = files_in(folder), Attempt.end

    def stopped_again(attempt, *words):
        os.kill(os.getpid(), signal.SIGTERM)
        end(attempt, *words)

    def denoise(what, done, total, note=""):
        if (what, done) == ("denoise", 2):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Attempt, "end", stopped_again)
    monkeypatch.setattr("longreel.jobs.progress._lines", lambda: denoise)
    handler = signal.getsignal(signal.SIGINT)
    done = longreel("render", "a cat", *SMALL)
    assert done.code == 130
    assert re.fullmatch(GOES_ON, done.err.strip())
    assert files_in(folder) == before
    assert signal.getsignal(signal.SIGINT) is handler


def test_nohup_stays_in_force(monkeypatch):
    seen = []

    def look():
        seen.append(signal.getsignal(signal.SIGHUP))
        return [("tiny", "a preset")]

    monkeypatch.setattr(load, "preset_summaries", look)
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        longreel("presets")
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert seen == [signal.SIG_IGN]


def start(folder, *arguments):
    return subprocess.Popen(
        [os.path.join(os.path.dirname(sys.executable), "longreel"), "render", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_signal_stops_a_render_within_a_step(tmp_path, tmp_path_factory):
    cache = f"model.text_cache={tmp_path_factory.mktemp('cache')}"
    small = ["video.height=32", "video.width=48", cache, "sampling.steps=1000"]
    # what it reads is kept: it would import transformers for that alone
    plan = plan_render("a cat", preset="shapes", overrides=small)
    encode_texts(plan, ["a cat", plan.config.sampling.negative_prompt])
    process = start(tmp_path, "a cat", "-o", "cat.mp4", *small)
    guard = threading.Timer(WAIT_S, process.kill)  # a render that hangs fails on its exit code
    guard.start()
    try:
        for line in process.stderr:
            if line.startswith("reading the prompt"):
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        out = process.stdout.read()
        assert process.wait() == 130
    finally:
        guard.cancel()
        process.kill()
        process.communicate()
    assert re.fullmatch(GOES_ON, rest.strip())
    assert out == ""
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize(
    ("phase", "sent"), [("denoise", signal.SIGINT), ("decode", signal.SIGTERM)]
)
def test_no_step_follows_a_signal(folder, monkeypatch, phase, sent):
    before, reports = files_in(folder), []

    def report(what, done, total, note=""):
        reports.append((what, done))
        if reports[-1] == (phase, 1):
            os.kill(os.getpid(), sent)

    monkeypatch.setattr("longreel.jobs.progress._lines", lambda: report)
    done = longreel("render", "a cat", "-o", "cat.mp4", *SMALL)
    assert (done.code, done.out) == (130, "")
    assert re.fullmatch(GOES_ON, done.err.strip())
    assert reports[-1] == (phase, 1)
    assert files_in(folder) == before
