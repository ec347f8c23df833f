"""Who may take a render, remove it, or have its file; and what is told before or after its time."""

import os
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from thread_chain import ThreadBackend, ThreadChain
from tiny_blocks import overrides

from longreel.jobs import renders_cli
from longreel.jobs.home import edits, lock
from longreel.jobs.home.folder import RenderFolder
from longreel.jobs.home.home import Home
from longreel.jobs.home.lock import Lock, Taken, is_read, read_by_us
from longreel.jobs.home.record import RenderRun
from longreel.jobs.progress import progress
from longreel.jobs.render import plan_render, stream_chunks
from longreel.parallel.chain import LocalChain
from longreel.pipeline.backend import LocalBackend
from longreel.pipeline.generator import Generator

pytestmark = pytest.mark.usefixtures("tiny_archs")


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


def plan(*more, frames=9):
    settings = overrides("causal", *more)
    return plan_render("a cat", preset="tiny", frames=frames, seed=3, overrides=settings)


def written(folder, output, changes=None):
    renders_cli.run_and_export(folder, output, changes or {}, progress())


def test_a_lock_of_another_container_is_left_to_its_heart(tmp_path, monkeypatch):
    """It may have our host's name, and numbers of processes that mean nothing here."""
    spaces = ["pid:[1]"]
    monkeypatch.setattr(lock, "_space", lambda: spaces[-1])
    with Lock(tmp_path).held("r"):
        spaces.append("pid:[2]")
        monkeypatch.setattr(lock, "_born", lambda pid: "")
        assert Lock(tmp_path).owner() is not None
        with pytest.raises(Taken), Lock(tmp_path).held("r"):
            pass
        spaces.append("pid:[1]")
        assert Lock(tmp_path).owner() is None


@pytest.mark.parametrize("text", [b"", b'{"host', b"{}", b"[]", b"7", b"\xff\xfe"])
def test_a_damaged_lock_is_left_to_its_heart(text, tmp_path):
    path = tmp_path / "lock"
    path.write_bytes(text)
    with pytest.raises(Taken, match="an unknown machine"), Lock(tmp_path).held("r"):
        pass
    os.utime(path, (time.time() - lock.STALE_S - 1,) * 2)
    assert Lock(tmp_path).owner() is None
    with Lock(tmp_path).held("r") as held:
        held.check()
        path.write_bytes(text)
        with pytest.raises(Taken, match="was taken over"):
            held.check()


@pytest.mark.parametrize("ahead_s", [-3600.0, 3600.0])
def test_a_lock_whose_heart_has_not_beaten_is_taken_over_whatever_the_clock_did(ahead_s, tmp_path):
    """Of a machine that is lost: its last beat may lie ahead of a clock that was set back."""
    path = tmp_path / "lock"
    path.write_text('{"host": "lost", "pid": 7, "born": "", "token": ""}')
    os.utime(path, (time.time() + ahead_s,) * 2)
    with Lock(tmp_path).held("r") as held:
        held.check()


@pytest.mark.parametrize("ahead_s", [-3600.0, 3600.0])
def test_who_makes_a_render_is_seen_from_a_machine_with_another_clock(
    ahead_s, home, tmp_path, monkeypatch
):
    folder = home.create(plan())
    with folder.attempt():
        other = SimpleNamespace(**vars(time))
        other.time = lambda: time.time() + ahead_s
        monkeypatch.setattr(lock, "time", other)
        assert RenderFolder(folder.path).status().state == "running"
        with pytest.raises(Taken, match="is being made"):
            home.remove(folder)


def test_a_render_that_is_being_written_to_a_file_is_not_removed(home, tmp_path, monkeypatch):
    folder, read = home.create(plan()), []
    export = RenderFolder.export

    def watched(self, output):
        read.append(is_read(self.path))
        export(self, output)

    monkeypatch.setattr(RenderFolder, "export", watched)
    written(folder, tmp_path / "a.mp4")
    assert read == [True]
    assert not is_read(folder.path)
    with read_by_us(folder.path), read_by_us(folder.path):
        with pytest.raises(Taken, match="being written to a file"):
            home.remove(folder)
        renders_cli.renders(home.path, prune=True, yes=True)
    assert [one.id for one in home.renders()] == [folder.id]
    (home.path / "renders" / ".old.gone").mkdir()
    (home.path / "renders" / "a file").write_text("of somebody")
    renders_cli.renders(home.path, prune=True, yes=True)
    assert [path.name for path in (home.path / "renders").iterdir()] == ["a file"]


def test_a_render_that_another_has_removed_meanwhile_is_no_error(home):
    folder = home.create(plan())
    home.remove(Home(home.path).open(folder.id))
    home.remove(folder)
    assert (folder.num_bytes(), home.names()) == (0, [])


def test_the_size_of_a_render_is_known_while_its_files_come_and_go(home):
    folder, over = home.create(plan()), threading.Event()

    def come_and_go():
        while not over.is_set():
            for name in "abc":
                (folder.path / "latents" / name).mkdir(parents=True)
                (folder.path / "latents" / name / "file").write_bytes(b"1")
            shutil.rmtree(folder.path / "latents")

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        sizes = {folder.num_bytes() for _ in range(3000)}
    finally:
        over.set()
        thread.join()
    assert sizes <= {min(sizes) + more for more in range(4)}


def test_a_file_goes_where_its_tilde_says(home, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    written(home.create(plan()), Path("~/a.mp4"))
    assert (tmp_path / "a.mp4").is_file()


def test_a_render_of_a_gpu_is_gone_on_with_and_written_without_one(home, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        folder = home.create(plan("model.device=cuda"))
    with pytest.raises(ValueError, match=r"model\.device=cuda is not there"):
        written(folder, tmp_path / "a.mp4")
    written(folder, tmp_path / "a.mp4", {"model.device": "cpu"})
    written(folder, tmp_path / "b.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_pictures_have_a_folder_s_name_by_default(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = home.create(plan("output.format=png"))
    renders_cli.resume(folder.id, home=home.path)
    assert len([*(tmp_path / folder.id).glob("*.png")]) == 9


def test_an_endless_render_that_was_finished_is_written_and_extended(home, tmp_path):
    folder = home.create(plan(frames=0))

    def report(what, done, total, note=""):
        if what == "decode" and done == 5:
            run.finish()

    run = RenderRun(folder, report)
    assert run.run().state == "done"
    written(folder, tmp_path / "a.mp4")
    made = folder.status().frames_done
    edits.extend(folder, 12)
    written(folder, tmp_path / "b.mp4")
    assert folder.status().frames_done == made + 12


@pytest.mark.parametrize("backend", [LocalBackend, ThreadBackend])
@pytest.mark.parametrize("where", ["before it begins", "before its first block"])
def test_an_endless_render_that_is_finished_as_it_begins_has_its_first_block(
    home, monkeypatch, where, backend
):
    """It was done without a frame, and no file could be made of it."""

    def told_first(begin):
        def tell_and_begin(*args):
            run.finish()
            yield from begin(*args)

        return tell_and_begin

    owners = [(Generator, "chunks")]
    if where == "before its first block":
        owners = [(LocalChain, "_run"), (ThreadChain, "_run")]
    for owner, name in owners:
        monkeypatch.setattr(owner, name, told_first(getattr(owner, name)))
    folder = home.create(plan(frames=0))
    run = RenderRun(folder, open_backend=lambda plan, given_up, hear: backend(plan))
    assert run.run().state == "done"
    assert [segment.blocks for segment in folder.segments()] == [(0, 1)]


@pytest.mark.parametrize("state", ["paused", "cancelled"])
def test_an_endless_render_that_is_stopped_before_its_first_segment_is_not_done(home, state):
    def report(what, done, total, note=""):
        if what == "denoise":
            run.stop(state)

    run = RenderRun(home.create(plan(frames=0)), report)
    assert (run.run().state, run._folder.frames_done) == (state, 0)


def test_what_is_told_before_a_video_begins_is_not_lost():
    with stream_chunks(plan(frames=0)) as stream:
        stream.stop()
        assert [*stream] == []
    with stream_chunks(plan()) as stream, stream_chunks(plan()) as other:
        stream.set_prompt("a dog")
        assert (next(stream).frames != next(other).frames).any()
        with pytest.raises(ValueError, match="is empty"):
            stream.set_prompt(" ")


def test_what_is_told_while_a_video_is_loaded_waits_for_that():
    with stream_chunks(plan(frames=0)) as stream:
        opened, going = threading.Event(), threading.Event()
        open_backend = stream._generator._open_backend

        def slowly(*plan):
            opened.set()
            assert going.wait(30)
            return open_backend(*plan)

        stream._generator._open_backend = slowly
        came = []
        reader = threading.Thread(target=lambda: came.extend(stream))
        reader.start()
        assert opened.wait(30)
        assert not stream._generator.is_loaded
        teller = threading.Thread(target=stream.stop)
        teller.start()
        going.set()
        for thread in (teller, reader):
            thread.join(30)
            assert not thread.is_alive()


def test_a_render_that_does_not_run_has_nobody_to_tell(home):
    run = RenderRun(home.create(plan()))
    for tell in (run.finish, lambda: run.set_prompt("a dog")):
        with pytest.raises(ValueError, match="does not run yet"):
            tell()
    assert not run.is_loaded


@pytest.mark.parametrize(
    "where",
    [{"prompt": "a\0cat"}, {"prompt_at": [(0.8, "a\0dog")]}, {"negative": "b\0ad"}],
)
def test_a_prompt_that_no_file_could_name_is_refused_at_once(where):
    prompt = where.get("prompt", "a cat")
    settings = overrides("causal")
    if "negative" in where:
        settings = [*settings, f"sampling.negative_prompt={where['negative']}"]
    with pytest.raises(ValueError, match="NUL"):
        plan_render(
            prompt, preset="tiny", frames=33, prompt_at=where.get("prompt_at", ()),
            overrides=settings,
        )  # fmt: skip
