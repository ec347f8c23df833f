"""Whatever goes wrong around it, the keeper goes on and every render ends; workers are played."""

import asyncio
import errno
import json
import sqlite3
import time

import pytest
from app import call, open_app
from played import WAIT_S, PlayedWorker, ask_for, begun, play, play_workers, until
from server import asked

from longreel.jobs.serve import keeper, streams
from longreel.jobs.serve.live import Live, Stage
from longreel.jobs.serve.routes_socket import _obey
from longreel.jobs.serve.streams import Reader, events
from longreel.jobs.serve.worker_link import Worker


@pytest.fixture
def started(monkeypatch):
    return play_workers(monkeypatch)


def failing(count, error, then):
    left = [error] * count

    def call(*arguments, **more):
        if left:
            raise left.pop()
        return then(*arguments, **more)

    return call


FULL = sqlite3.OperationalError("database or disk is full")
NO_FILES = OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize(
    ("owner", "method", "error"),
    [
        ("queue", "take_next", FULL),
        ("queue", "overdue", FULL),
        ("queue", "add_gpu_seconds", FULL),
        ("queue", "end", FULL),
        ("files", "segments", NO_FILES),
    ],
)
def test_an_error_that_passes_stops_nothing(tmp_path, started, monkeypatch, owner, method, error):
    async def part(http, here):
        owned = getattr(here, owner)
        render = await ask_for(http)
        if method != "take_next":
            await until(lambda: started and started[0].told)
        monkeypatch.setattr(owned, method, failing(2, error, getattr(owned, method)))
        await until(lambda: started and started[0].told)
        started[0].news.put_nowait({"event": "over", "how": "done"})
        await until(lambda: here.queue.get(render).state == "done")
        assert here.queue.get(render).gpu_seconds < WAIT_S
        another = await ask_for(http)
        await until(lambda: here.queue.get(another).state == "running")

    play(tmp_path, part)


def test_a_machine_without_room_for_a_process_costs_a_render_no_attempt(
    tmp_path, started, monkeypatch
):
    start = Worker.start

    async def part(http, here):
        await until(lambda: started)
        monkeypatch.setattr(Worker, "start", failing(5, NO_FILES, start))
        here.keeper._workers._ahead = None
        render = await ask_for(http)
        await until(lambda: len(started) == 2)
        assert here.queue.get(render).attempts == 1

    monkeypatch.setattr("longreel.jobs.serve.keeper._RETRY_S", 0.01)
    play(tmp_path, part)


def test_what_never_passes_ends_the_render_and_not_the_server(tmp_path, started, monkeypatch):
    async def part(http, here):
        await until(lambda: started)
        monkeypatch.setattr(Worker, "start", failing(9, FileNotFoundError("python"), None))
        here.keeper._workers._ahead = None
        render = await ask_for(http)
        await until(lambda: here.queue.get(render).state == "failed")
        assert here.queue.get(render).error["code"] == "worker_lost"

    monkeypatch.setattr("longreel.jobs.serve.keeper._RETRY_S", 0.01)
    play(tmp_path, part)


def test_a_process_that_has_met_a_bug_makes_no_other_render(tmp_path, started):
    """On a GPU an error may stay: every render after it would fail as well."""

    async def part(http, here):
        render, worker = await begun(http, started)
        over = {"event": "over", "how": "failed", "code": "internal_error", "message": "a bug"}
        worker.news.put_nowait(over)
        await until(lambda: here.queue.get(render).state == "failed")
        another = await ask_for(http)
        await until(lambda: len(started) == 2 and started[1].told)
        assert started[1].told[0][1]["render"] == another
        assert worker.ended

    play(tmp_path, part)


def test_a_process_that_is_done_with_a_render_pays_not_for_a_queue_that_takes_nothing(
    tmp_path, started, monkeypatch
):
    """By then it may be at another render."""
    monkeypatch.setattr(keeper, "_STOP_S", 0.05)
    monkeypatch.setattr(keeper, "_RETRY_S", 0.01)

    async def part(http, here):
        render, worker = await begun(http, started)
        monkeypatch.setattr(here.queue, "end", failing(50, FULL, here.queue.end))
        await http.post(f"/api/v1/renders/{render}/cancel")
        await until(lambda: here.queue.get(render).state == "cancelled")
        assert not worker.ended

    play(tmp_path, part)


def test_a_server_that_ends_in_the_last_attempt_at_a_render_fails_it_not(
    tmp_path, started, monkeypatch
):
    monkeypatch.setattr(keeper, "_SHUTDOWN_S", 0.1)
    monkeypatch.setattr(PlayedWorker, "tell", lambda self, do, **facts: self.told.append(do))
    with open_app(tmp_path) as app:
        here = app.state.context
        render = call(app, "POST", "/api/v1/renders", json=asked(frames=1)).json()["id"]
        here.queue.take_next(1, time.time())
        here.queue.put_back(render, keeper.MAX_ATTEMPTS - 1)  # processes that were lost

        async def main():
            keeping = asyncio.create_task(here.keeper.run())
            await until(lambda: started and "run" in started[0].told)
            keeping.cancel()  # while it is in a long step
            await asyncio.gather(keeping, return_exceptions=True)

        asyncio.run(asyncio.wait_for(main(), WAIT_S))
        assert here.queue.get(render).state in ("queued", "running")


def test_a_folder_that_cannot_be_read_stops_nothing(tmp_path, started):
    async def part(http, here):
        render = await ask_for(http)
        await until(lambda: here.queue.get(render).state == "running")
        manifest = tmp_path / "renders" / render / "manifest.json"
        manifest.write_text('{"format": 99}')
        here.files._open.clear()
        assert (await http.get(f"/api/v1/renders/{render}")).status_code == 200
        journal = tmp_path / "renders" / render / "journal"
        journal.unlink(missing_ok=True)
        journal.mkdir()  # reading it is an error that never passes
        frames = await http.get(f"/api/v1/renders/{render}/frames")
        assert frames.json()["error"]["code"] == "files_unreadable"
        await until(lambda: started and started[0].told)
        over = {"event": "over", "how": "failed", "code": "render_error", "message": "unreadable"}
        started[0].news.put_nowait(over)
        await until(lambda: here.queue.get(render).state == "failed")
        another = await ask_for(http)
        await until(lambda: here.queue.get(another).state == "running")
        assert (await http.delete(f"/api/v1/renders/{render}")).status_code == 200
        assert not journal.exists()

    play(tmp_path, part)


def test_one_who_leaves_before_a_prompt_is_answered_harms_nobody(tmp_path, started):
    async def part(http, here):
        render, worker = await begun(http, started)
        asking = asyncio.create_task(here.keeper.change_prompt(render, "a blue square", 1))
        await until(lambda: worker.told[-1][0] == "prompt")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        worker.news.put_nowait({"event": "prompt", "number": worker.told[-1][1]["number"]})
        # who comes back hears of the same change
        assert await here.keeper.change_prompt(render, "a blue square", 1)
        assert len(worker.told) == 2
        asking = asyncio.create_task(here.keeper.change_prompt(render, "a red square", 2))
        await until(lambda: len(worker.told) == 3)
        asking.cancel()
        worker.news.put_nowait({"event": "over", "how": "done"})
        await until(lambda: here.queue.get(render).state == "done")
        assert not worker.ended

    play(tmp_path, part)


def test_a_prompt_that_is_sent_again_counts_once_and_another_sender_s_counts(tmp_path, started):
    async def part(http, here):
        render, worker = await begun(http, started)

        async def send(number, prompt):
            said = json.dumps({"type": "prompt", "number": number, "prompt": prompt})
            asking = asyncio.create_task(_obey(said, here, here.queue.get(render), Reader()))
            known = len(worker.told)
            await until(lambda: asking.done() or len(worker.told) > known)
            if not asking.done():
                number = worker.told[-1][1]["number"]
                worker.news.put_nowait({"event": "prompt", "number": number})
            return await asking

        assert await send(1, "day") == {"type": "prompt", "number": 1}
        assert await send(2, "night") == {"type": "prompt", "number": 2}
        assert await send(2, "night") == {"type": "prompt", "number": 2, "repeated": True}
        assert await send(1, "day") == {"type": "prompt", "number": 1}
        assert [facts["prompt"] for do, facts in worker.told if do == "prompt"] == [
            "day",
            "night",
            "day",
        ]

    play(tmp_path, part)


def test_a_render_goes_on_after_its_deadline_when_it_is_told_to(tmp_path, started):
    async def part(http, here):
        first = await ask_for(http)
        await until(lambda: here.queue.get(first).state == "running")
        late = await ask_for(http, deadline_s=0.01)
        await until(lambda: here.queue.get(late).state == "failed")
        said = (await http.post(f"/api/v1/renders/{late}/resume")).json()
        assert (said["status"], said["error"]) == ("queued", None)
        assert (said["ended_at"], said["deadline_at"]) == (None, None)
        await asyncio.sleep(0.5)
        assert here.queue.get(late).state == "queued"

    play(tmp_path, part)


def test_a_render_that_is_yet_to_stop_goes_on_when_it_is_told_to(tmp_path, started, monkeypatch):
    """A step may take minutes: nobody has to wait for its end to say so."""
    monkeypatch.setattr(
        PlayedWorker, "tell", lambda self, do, **facts: self.told.append((do, facts))
    )

    async def part(http, here):
        render, worker = await begun(http, started)
        path = f"/api/v1/renders/{render}"
        await http.post(f"{path}/pause")
        said = await http.post(f"{path}/resume")
        assert (said.status_code, said.json()["status"]) == (200, "running")
        assert (await http.post(f"{path}/resume")).status_code == 409
        worker.news.put_nowait({"event": "over", "how": "stopped"})
        await until(lambda: [do for do, _ in worker.told].count("run") == 2)
        assert (await http.get(path)).json()["attempts"] == 1

    play(tmp_path, part)


def test_a_deadline_that_passes_while_a_lost_render_waits_to_be_put_back_is_told(tmp_path):
    with open_app(tmp_path) as app:
        here = app.state.context
        body = asked(frames=1, deadline_s=1.0)
        render = call(app, "POST", "/api/v1/renders", json=body).json()["id"]
        assert here.queue.take_next(1, time.time()).render == render
        time.sleep(1.0)
        here.keeper._expire()
        here.keeper._put_back(render, 1)
        record = here.queue.get(render)
        assert (record.state, record.error["code"]) == ("failed", "deadline")


def test_a_live_session_that_was_cancelled_is_not_paused_for_want_of_readers(tmp_path):
    with open_app(tmp_path) as app:
        here = app.state.context
        body = asked(frames=1, pace="consumer")
        render = call(app, "POST", "/api/v1/renders", json=body).json()["id"]
        record = here.queue.take_next(1, time.time())
        here.keeper.live[render] = Live(record=record, since=0.0, taken_at=-1e9)
        call(app, "POST", f"/api/v1/renders/{render}/cancel")
        here.keeper._expire()
        assert here.queue.get(render).wish == "cancel"


def test_blocks_that_a_process_has_left_are_not_told_as_done(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "_PROGRESS_S", 0.05)
    told = []

    async def part(here, record):
        live = here.keeper.live[record.render] = Live(record=record, since=time.monotonic())
        live.stages["denoise"] = Stage(3, 20, "0:2 1:1 2:1", time.monotonic(), 0)

        async def read():
            async for text in events(here, record, 0):
                told.extend(line for line in text.splitlines() if line.startswith('data: {"b'))

        reading = asyncio.create_task(read())
        await asyncio.sleep(0.5)
        live.stages["denoise"].note = "3:1 4:1"
        await until(lambda: told)
        del here.keeper.live[record.render]
        here.queue.pause(record.render)
        await asyncio.sleep(0.5)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)

    with open_app(tmp_path) as app:
        call(app, "POST", "/api/v1/renders", json=asked(frames=1))
        here = app.state.context
        record = here.queue.take_next(1, time.time())
        asyncio.run(asyncio.wait_for(part(here, record), WAIT_S))
    # those that came and went between two looks are; those that it was at are not
    assert told == [f'data: {{"block": {block}}}' for block in range(3)]
