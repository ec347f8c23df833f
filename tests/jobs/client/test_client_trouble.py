"""Clients where answers are lost, the queue is long, and callbacks steer; no worker runs."""

import asyncio
import json
import threading
import time

import httpx
import pytest
from app import call, on_a_port, open_app
from server import asked

import longreel
from longreel.jobs.client import http as http_module
from longreel.jobs.client.batch import run_batch
from longreel.jobs.client.errors import RenderFailed, ServerError
from longreel.jobs.client.http import Patience, Quiet
from longreel.jobs.client.loop import Loop
from longreel.jobs.serve.record import NewRender


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with open_app(tmp_path_factory.mktemp("home")) as app:
        yield app


@pytest.fixture(scope="module")
def url(app):
    with on_a_port(app) as url:
        yield url


@pytest.fixture
def render(app):
    return call(app, "POST", "/api/v1/renders", json=asked(frames=17)).json()["id"]


def losing_the_first(client, method):
    """The answer to its first request of this kind never comes."""
    send, lost = client.request, []

    async def request(how, path, **more):
        answer = await send(how, path, **more)
        if how == method and not lost:
            lost.append(path)
            raise httpx.ReadError("the connection is broken")
        return answer

    client.request = request


@pytest.mark.parametrize(
    ("do", "method", "status"),
    [("pause", "POST", "paused"), ("resume", "POST", "queued"), ("cancel", "POST", "cancelled"),
     ("delete", "DELETE", None)],
)  # fmt: skip
def test_what_was_done_though_its_answer_was_lost_is_no_error(app, url, render, do, method, status):
    async def run():
        async with longreel.AsyncClient(url) as client:
            one = await client.get(render)
            if do == "resume":
                await one.pause()
            losing_the_first(client._http._client, method)
            await getattr(one, do)()
            return one.info.status

    said = asyncio.run(run())
    record = app.state.context.queue.get(render)
    if status is None:
        assert record is None
    else:
        assert (said, record.state) == (status, status)


def test_all_renders_of_a_list_can_be_deleted_while_it_is_read(app, url, render):
    queue = app.state.context.queue
    request, now = queue.get(render).request, time.time()
    for i in range(120):  # more than a page of it
        new = NewRender(render=f"x{i}", client="local", request=request, digest=str(i))
        queue.add(new, now)
    with longreel.Client(url) as client:
        for one in client.renders():
            one.delete()
        assert [*client.renders()] == []


def test_a_callback_may_steer_the_render_that_is_waited_for(url, render):
    with longreel.Client(url) as client:
        one = client.get(render)
        with pytest.raises(RenderFailed, match="cancelled"):
            one.wait(progress=lambda info: info.over or one.cancel(), timeout_s=60)


def test_a_wait_has_an_end(url, render):
    said = rf"{render} was .* when timeout_s=0.2 was over.* cancel it"
    with longreel.Client(url) as client, pytest.raises(TimeoutError, match=said):
        client.get(render).wait(timeout_s=0.2)


@pytest.mark.parametrize("name", ["nowhere/a.mp4", "nowhere/pictures", "full", "a.mp4"])
def test_where_a_download_goes_is_looked_at_before_the_render_is_waited_for(
    url, render, tmp_path, name
):
    (tmp_path / "a.mp4").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "000000.png").touch()

    async def run():
        async with longreel.AsyncClient(url) as client, asyncio.timeout(20):
            await (await client.get(render)).download(tmp_path / name)

    with pytest.raises(ValueError, match="output="):
        asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ServerError(502, "", "a proxy", None), "asked"),
        (OSError(28, "No space left on device"), "asked"),
        (ServerError(422, "", "a wrong request", None), "failed"),
        (RenderFailed("r", "failed", "why"), "failed"),
    ],
    ids=["a proxy", "a full disk", "a wrong request", "a failed render"],
)
def test_a_batch_asks_anew_only_for_what_has_failed(tmp_path, error, state):
    """Whatever else goes wrong, its render may be there, and is found by the same key."""
    keys = []

    class Broken:
        async def renders(self):
            for render in ():  # it is there, and has none
                yield render

        async def render(self, prompt, *, key):
            keys.append(key)
            raise error

    for _ in range(2):
        result = asyncio.run(run_batch(Broken(), ["a red circle"], tmp_path, progress=False))
        assert [item.state for item in result.items] == ["failed"]
    lines = [json.loads(line) for line in (tmp_path / "batch.jsonl").read_text().splitlines()]
    assert lines[-1]["state"] == state
    assert len(set(keys)) == (1 if state == "asked" else 2)


def test_the_thread_of_a_client_does_not_wait_for_itself():
    loop = Loop()

    async def nothing():
        pass

    async def call_again():
        loop.call(nothing())

    with pytest.raises(RuntimeError, match="wait for itself"):
        loop.call(call_again())
    loop.close(nothing)


def test_frames_of_a_render_that_waits_for_its_turn_are_waited_for(app, url, render, monkeypatch):
    """All times a thousandth: silence is borne longer than a server that is away."""
    monkeypatch.setattr(http_module, "_SILENCE_S", 0.2)

    async def run():
        async with longreel.AsyncClient(url, patience_s=0.1) as client:
            one = await client.get(render)

            async def read():
                async for _ in one.frames():
                    pass

            reading = asyncio.create_task(read())
            await asyncio.sleep(1.5)
            assert not reading.done(), reading.exception()
            await one.cancel()
            with pytest.raises(RenderFailed, match="cancelled"):
                await reading

    asyncio.run(run())


def test_silence_counts_as_an_answer_and_a_server_that_is_away_does_not():
    now = [0.0]
    patience = Patience(1.0, now=lambda: now[0])

    async def run():
        for _ in range(3):
            await patience.wait(Quiet("nothing came"))
            now[0] += 600
        await patience.wait(httpx.ConnectError("away"))
        now[0] += 2
        with pytest.raises(httpx.ConnectError):
            await patience.wait(httpx.ConnectError("away"))

    asyncio.run(run())


def test_a_server_that_does_not_answer_is_said_once_while_it_is_waited_for(caplog):
    """`longreel batch` with another port than the server's was silent for two minutes."""
    now = [0.0]
    patience = Patience(100.0, "http://there:1", now=lambda: now[0])

    async def run():
        for _ in range(4):
            with caplog.at_level("WARNING", "longreel"):
                await patience.wait(httpx.ConnectError("refused"))
            now[0] += 4
        patience.good()
        await patience.wait(httpx.ConnectError("refused"))  # an outage that may be short

    asyncio.run(run())
    (said,) = caplog.messages
    assert said == "http://there:1 does not answer (refused); it is tried for 100 s"


@pytest.mark.parametrize(
    ("url", "token", "word"),
    [
        ("localhost:8500", None, "url=localhost:8500 is no address"),
        ("127.0.0.1:8500", None, "write it like http://"),
        ("http://localhost:port", None, "no address"),
        ("http:///renders", None, "no address"),
        ("http://127.0.0.1:9", "a-token-of-a-file\n", "line break"),
        ("http://127.0.0.1:9", "a-tok\u00e9n", "cannot be sent"),
    ],
)
def test_what_no_request_can_be_sent_with_is_said_at_once(url, token, word):
    """And not tried again and again, as if a server were away."""
    threads = threading.active_count()
    with pytest.raises(ValueError, match=word):
        longreel.Client(url, token)
    assert threading.active_count() == threads
