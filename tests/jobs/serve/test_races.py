"""What two ask of one render at once comes out as if one had asked after the other."""

import asyncio
import os
import threading
import time

import httpx
import pytest
from app import call, made, open_app
from server import asked

from longreel.jobs.home.folder import RenderFolder
from longreel.jobs.home.lock import Lock
from longreel.jobs.serve.errors import ApiError
from longreel.jobs.serve.files import AllFiles


@pytest.fixture
def held(monkeypatch):
    """A method that a thread of the server calls, held in its midst: when it is, and going on."""

    def hold(owner, method):
        reached, go_on, whole = threading.Event(), threading.Event(), getattr(owner, method)

        def slowly(*arguments):
            reached.set()
            assert go_on.wait(60)
            return whole(*arguments)

        monkeypatch.setattr(owner, method, slowly)
        return reached, go_on

    return hold


def during(app, held, first, then):
    """Answers of the first request and of another that comes in its midst."""
    reached, go_on = held

    async def both():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            one = asyncio.create_task(http.request(*first))
            await asyncio.to_thread(reached.wait, 60)
            other = asyncio.create_task(http.request(*then))
            await asyncio.sleep(0.2)
            here = app.state.context  # whoever may run is taken by the keeper at once
            taken = here.queue.take_next(1, time.time())
            go_on.set()
            return await one, await other, taken

    return asyncio.run(both())


def test_a_render_is_not_begun_while_it_is_removed(tmp_path, held):
    with open_app(tmp_path) as app:
        path = f"/api/v1/renders/{call(app, 'POST', '/api/v1/renders', json=asked()).json()['id']}"
        held = held(AllFiles, "remove")
        one, other, taken = during(app, held, ("DELETE", path), ("POST", f"{path}/resume"))
        assert (one.status_code, other.status_code, taken) == (200, 404, None)
        assert app.state.context.files.home.names() == []


def test_an_edit_that_is_given_up_is_not_gone_on_with(tmp_path, held):
    with open_app(tmp_path) as app:
        render = made(app, frames=9)
        path = f"/api/v1/renders/{render}"
        call(app, "POST", f"{path}/extend", json={"frames": 8})
        call(app, "POST", f"{path}/cancel")
        held = held(RenderFolder, "drop")
        one, other, taken = during(app, held, ("POST", f"{path}/drop"), ("POST", f"{path}/resume"))
        assert (one.json()["status"], one.json()["frames"]) == ("done", 9)
        assert (other.status_code, other.json()["error"]["code"]) == (409, "not_paused")
        assert taken is None
        assert call(app, "GET", path).json()["status"] == "done"


def test_who_else_is_at_a_render_is_told_without_its_process_and_machine(tmp_path):
    """As where somebody resumes one in a terminal."""
    with open_app(tmp_path) as app:
        render = made(app, frames=9)
        path = f"/api/v1/renders/{render}"
        with Lock(tmp_path / "renders" / render).held(render):
            answer = call(app, "POST", f"{path}/extend", json={"frames": 8})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "running")
        assert str(os.getpid()) not in answer.text
        assert call(app, "POST", f"{path}/extend", json={"frames": 8}).status_code == 200


def test_a_render_that_cannot_be_removed_waits_for_its_turn_as_before(tmp_path, monkeypatch):
    def fail(files, render):
        raise ApiError(409, "running", "its process is yet to let go of it")

    with open_app(tmp_path) as app:
        path = f"/api/v1/renders/{call(app, 'POST', '/api/v1/renders', json=asked()).json()['id']}"
        monkeypatch.setattr(AllFiles, "remove", fail)
        assert call(app, "DELETE", path).status_code == 409
        assert call(app, "GET", path).json()["status"] == "queued"
