"""The server's application in this process, without workers: renders are taken and wait."""

import asyncio
import contextlib
import threading
import time

import httpx
import uvicorn
from server import asked
from texts import TEXTS

from longreel.jobs.home.record import RenderRun
from longreel.jobs.serve.app import make_app
from longreel.jobs.serve.connection import bounded


@contextlib.contextmanager
def open_app(home, **more):
    app = make_app(home, preset="tiny", overrides=[f"model.text_cache={TEXTS}"], **more)
    app.state.context.ready = True
    try:
        yield app
    finally:
        app.state.context.queue.close()


def call(app, method, path, *, host="127.0.0.1:8500", **more):
    """One request."""

    async def ask():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as http:
            return await http.request(method, path, **more)

    return asyncio.run(ask())


@contextlib.contextmanager
def on_a_port(app):
    """The application on a real socket, for what needs one; its URL."""
    config = uvicorn.Config(
        app,
        port=0,
        http=bounded(app.state.context.limits),
        lifespan="off",
        log_level="error",
        ws="websockets-sansio",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


def made(app, **request):
    """A render of the app's home that is done, made in this process."""
    here = app.state.context
    answer = call(app, "POST", "/api/v1/renders", json=asked(**request))
    assert answer.status_code == 201, answer.text
    render = answer.json()["id"]
    RenderRun(here.files.home.open(render)).run()
    here.queue.end(render, "done", time.time())
    return render
