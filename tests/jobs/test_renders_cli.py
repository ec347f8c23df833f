"""`longreel renders`, what is said of a render that is not there, and what of one that is made."""

import shutil
from pathlib import Path

import pytest
from command import SMALL, longreel

DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.mark.parametrize("options", [["--yes"], ["--json", "--prune"]])
def test_options_of_which_one_would_be_ignored_are_refused(tmp_path, options):
    done = longreel("renders", "--home", tmp_path, *options)
    assert done.code == 2
    assert f"{options[0]} " in done.message


def test_a_render_that_is_not_there_is_looked_for_where_it_was_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert "`longreel renders` lists" in longreel("resume", "x").message
    elsewhere = tmp_path / "their renders"
    said = longreel("resume", "x", "--home", elsewhere).message
    assert f"`longreel renders --home '{elsewhere}'` lists" in said


def test_a_trace_that_cannot_be_written_says_where(tmp_path):
    shutil.copytree(DATA / "render-format-1", tmp_path / "renders" / "r")
    path = tmp_path / "no" / "trace.json"
    done = longreel("trace", "r", "--home", tmp_path, "-o", path)
    assert (done.code, done.out) == (2, "")
    assert done.message.startswith(f"output={path} lies in {path.parent}, which does not exist")


def test_whatever_is_printed_meanwhile_the_output_is_the_file_s_name(tmp_path, monkeypatch):
    """Ray prints there in the driver when a worker is lost."""

    def report(what, done, total, note=""):
        print("(raylet) A worker died")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("longreel.jobs.progress._lines", lambda: report)
    done = longreel("render", "a cat", "--home", tmp_path, *SMALL)
    assert (done.code, done.out) == (0, "a-cat-0.mp4\n")
    assert "(raylet)" in done.err
