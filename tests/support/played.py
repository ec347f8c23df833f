"""A keeper over workers that do what a test says: no process, and no model."""

import asyncio

import httpx
from app import open_app
from server import asked

from longreel.jobs.serve import workers
from longreel.jobs.serve.worker_link import Worker

WAIT_S = 60.0


class PlayedWorker:
    """Ends a render when it shall stop, and does what the test says otherwise."""

    model, alive, pid = None, True, 0

    def __init__(self):
        self.news, self.told, self.ended = asyncio.Queue(), [], False

    def tell(self, do, **facts):
        self.told.append((do, facts))
        if do == "stop":
            self.news.put_nowait({"event": "over", "how": "cancelled"})

    async def hear(self):
        return await self.news.get()

    async def end(self, grace_s=0.0):
        self.ended = True
        self.news.put_nowait(None)


def play_workers(monkeypatch):
    """Those that were started, in order."""
    started = []

    async def start(settings):
        started.append(PlayedWorker())
        return started[-1]

    monkeypatch.setattr(Worker, "start", start)
    monkeypatch.setattr(workers, "_GRACE_S", 0.0)
    return started


def play(home, part):
    """`part(http, here)` beside a keeper that runs."""

    async def main():
        with open_app(home) as app:
            here = app.state.context
            transport = httpx.ASGITransport(app=app)
            keeping = asyncio.create_task(here.keeper.run())
            try:
                async with (
                    asyncio.timeout(WAIT_S),
                    httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http,
                ):
                    await part(http, here)
                assert not keeping.done()
            finally:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)

    asyncio.run(main())


async def ask_for(http, **more):
    answer = await http.post("/api/v1/renders", json=asked(frames=1, **more))
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


async def begun(http, started):
    """A render, and the first worker, which is at it."""
    render = await ask_for(http)
    await until(lambda: started and started[0].told)
    return render, started[0]


async def until(holds):
    while not holds():
        await asyncio.sleep(0.01)
