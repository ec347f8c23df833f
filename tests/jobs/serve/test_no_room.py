"""A full disk, or too many open files, is nobody's fault and may pass: 503, and nothing is left;
nor is of what was coming when a server ended."""

import asyncio
import contextlib
import errno
import shutil
import sqlite3
from types import SimpleNamespace

import pytest
from app import call, made, open_app
from server import asked

from longreel.jobs.home import begin
from longreel.jobs.home.home import Home
from longreel.jobs.home.record import RenderRun
from longreel.jobs.serve.queue import Queue
from longreel.jobs.serve.room import promised
from longreel.jobs.serve.workers import Workers

FULL = OSError(errno.ENOSPC, "No space left on device", "/secret")


@pytest.mark.parametrize(
    ("owner", "method", "error", "status", "code"),
    [
        (begin, "write_manifest", FULL, 503, "no_room"),
        (Queue, "add", sqlite3.OperationalError("database or disk is full"), 503, "no_room"),
        (Queue, "counts", KeyError("a bug"), 500, "internal_error"),
        (Queue, "counts", PermissionError(errno.EACCES, "no"), 500, "internal_error"),
    ],
)
def test_what_is_no_fault_of_a_request_is_said_and_leaves_nothing(
    tmp_path, monkeypatch, owner, method, error, status, code
):
    def fail(*arguments):
        raise error

    with open_app(tmp_path) as app:
        monkeypatch.setattr(owner, method, fail)
        answer = call(app, "POST", "/api/v1/renders", json=asked(frames=1))
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["code"] == code
        assert answer.json()["error"]["type"] == "server_error"
        assert ("retry-after" in answer.headers) == (status == 503)
        assert "secret" not in answer.text
        assert not Home(tmp_path).names()
        monkeypatch.undo()
        assert call(app, "POST", "/api/v1/renders", json=asked(frames=1)).status_code == 201


def test_what_the_disk_could_not_hold_is_refused_before_it_is_begun(tmp_path, monkeypatch):
    """A render, and more of one: not when its last hour is made."""
    with open_app(tmp_path) as app:
        render = made(app, frames=9)
        path = f"/api/v1/renders/{render}"
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**5))
        for where, body in (
            ("/api/v1/renders", asked(frames=33)),
            (f"{path}/extend", {"frames": 64}),
        ):
            answer = call(app, "POST", where, json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_room")
            assert "and 0.1 MB are free" in answer.json()["error"]["message"]
        assert Home(tmp_path).names() == [render]
        assert call(app, "GET", path).json()["status"] == "done"
        monkeypatch.undo()
        assert call(app, "POST", f"{path}/extend", json={"frames": 64}).status_code == 200


def test_room_that_was_promised_to_others_is_not_free(tmp_path, monkeypatch):
    """Ten requests would pass one after the other, and the disk fill before the last is made."""
    path = "/api/v1/renders"
    with open_app(tmp_path) as app:
        here = app.state.context
        first = made(app, frames=9)
        call(app, "POST", path, json=asked(frames=33))
        whole = promised(here.queue, here.files)
        disk = SimpleNamespace(free=int(2.9 * whole))
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: disk)
        second = call(app, "POST", path, json=asked(frames=33)).json()["id"]
        for where, body in (
            (path, asked(frames=33)),
            (f"{path}/{first}/extend", {"frames": 48}),
            ("/v1/videos/extensions", {"prompt": "x", "seconds": "6", "video": {"id": first}}),
        ):
            answer = call(app, "POST", where, json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_room"), where
            assert "those that were accepted before it" in answer.json()["error"]["message"]
        assert call(app, "POST", path, json=asked(frames=1)).status_code == 201
        call(app, "POST", f"{path}/{second}/cancel")
        assert call(app, "POST", path, json=asked(frames=33)).status_code == 201


def test_what_a_render_has_made_is_promised_to_it_no_more(tmp_path):
    with open_app(tmp_path) as app:
        here = app.state.context
        render = call(app, "POST", "/api/v1/renders", json=asked(frames=33)).json()["id"]
        whole = promised(here.queue, here.files)
        here.queue.take_next(1, 0.0)
        assert promised(here.queue, here.files) == whole
        folder = here.files.home.open(render)

        def stop_midway(*_):
            if folder.frames_done:
                run.stop()

        run = RenderRun(folder, stop_midway)
        run.run()
        here.queue.pause(render)
        assert promised(here.queue, here.files) == (33 - folder.frames_done) * whole // 33
        assert 0 < folder.frames_done < 33
        RenderRun(folder).run()
        here.queue.end(render, "done", 1.0)
        assert promised(here.queue, here.files) == 0
        call(app, "POST", f"/api/v1/renders/{render}/redo", json={"first": 16, "stop": 18})
        assert 0 < promised(here.queue, here.files) < whole


def test_renders_that_wait_are_looked_at_once_however_many_requests_come(tmp_path, monkeypatch):
    """Each request opened every render that had begun."""
    with open_app(tmp_path) as app:
        here, looks = app.state.context, []
        for _ in range(3):
            call(app, "POST", "/api/v1/renders", json=asked(frames=33))
            here.queue.pause(here.queue.take_next(9, 0.0).render)
        running = call(app, "POST", "/api/v1/renders", json=asked(frames=33)).json()["id"]
        here.queue.take_next(9, 0.0)
        whole, find = promised(here.queue, here.files), here.files.of
        monkeypatch.setattr(here.files, "of", lambda id: looks.append(id) or find(id))
        assert promised(here.queue, here.files) == whole
        assert looks == [running]


def test_a_render_that_would_fill_the_disk_is_not_resumed(tmp_path, monkeypatch):
    with open_app(tmp_path) as app:
        here, path = app.state.context, "/api/v1/renders"
        ids = [call(app, "POST", path, json=asked(frames=33)).json()["id"] for _ in range(2)]
        whole = promised(here.queue, here.files) // 2
        disk = SimpleNamespace(free=2 * whole)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: disk)
        ends = ("pause", "cancel")
        for id, end in zip(ids, ends, strict=True):
            call(app, "POST", f"{path}/{id}/{end}")
            assert call(app, "POST", f"{path}/{id}/resume").json()["status"] == "queued"
            call(app, "POST", f"{path}/{id}/{end}")
        disk.free = whole // 2
        for id, end in zip(ids, ends, strict=True):
            answer = call(app, "POST", f"{path}/{id}/resume")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_room"), end
            assert answer.headers["retry-after"]
        disk.free = 2 * whole
        for id in ids:
            assert call(app, "POST", f"{path}/{id}/resume").json()["status"] == "queued"
        here.queue.take_next(1, 0.0)
        here.queue.ask(ids[0], "pause")
        disk.free = 0  # it has not stopped: it goes on, and waits for room
        assert call(app, "POST", f"{path}/{ids[0]}/resume").json()["status"] == "running"


def test_what_was_coming_when_a_server_ended_is_swept_away_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(Workers, "start_ahead", lambda workers: None)
    with open_app(tmp_path) as app:
        there = call(app, "POST", "/api/v1/renders", json=asked(frames=1)).json()["id"]

        def ends(new, now):
            raise asyncio.CancelledError

        monkeypatch.setattr(app.state.context.queue, "add", ends)
        with contextlib.suppress(asyncio.CancelledError):
            call(app, "POST", "/api/v1/renders", json=asked(frames=1))
    home = Home(tmp_path)
    assert len({*home.names()} - {there}) == 1
    # of somebody who made it without the server
    own = shutil.copytree(tmp_path / "renders" / there, tmp_path / "renders" / "of-somebody")
    (tmp_path / "uploads" / "0123.png").write_bytes(b"a picture that was looked at")
    (tmp_path / "uploads" / there).touch()  # it ended just after the queue knew of it

    async def serve(app):
        async with app.router.lifespan_context(app):
            pass

    with open_app(tmp_path) as app:
        asyncio.run(serve(app))
    assert sorted(home.names()) == sorted([there, own.name])
    assert [*(tmp_path / "uploads").iterdir()] == []
