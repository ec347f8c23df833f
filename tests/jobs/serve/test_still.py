"""A worker that gives signs of life and moves nothing loses its render; a slow one does not."""

import asyncio
from types import SimpleNamespace

import pytest
from played import begun, play, play_workers, until

from longreel.jobs.serve import live as lives
from longreel.jobs.serve import worker_link
from longreel.jobs.serve.live import Live


@pytest.fixture
def started(monkeypatch):
    return play_workers(monkeypatch)


def step(done, what="denoise"):
    return {"event": "progress", "what": what, "done": done, "total": 90, "note": ""}


def going(**request):
    return Live(record=SimpleNamespace(request=request), since=0.0)


def looked_at(live, seconds):
    """As the keeper does, five times a second."""
    return any(live.stands_still(0.2) for _ in range(5 * seconds))


def test_a_render_whose_steps_have_come_to_nothing_is_taken_from_its_process(
    tmp_path, started, monkeypatch
):
    async def part(http, here):
        render, worker = await begun(http, started)
        worker.news.put_nowait(step(0))
        worker.news.put_nowait(step(1))
        live = here.keeper.live[render]
        assert live.record.request["place_timeout_s"] == 60.0
        live.record.request["place_timeout_s"] = 0.0
        await until(lambda: "denoise" in live.stages and live.stages["denoise"].done == 1)
        monkeypatch.setattr(lives, "_STILL_S", 0.5)
        live.longest_s = 0.0  # as steps of a tiny model are
        await until(lambda: worker.ended)
        await until(lambda: len(started) == 2 and started[1].told)
        assert started[1].told[0][1]["render"] == render
        assert here.queue.get(render).attempts == 2

    play(tmp_path, part)


def test_how_long_a_step_takes_is_learnt_from_those_before():
    live = going()
    live.note(step(0))
    assert not looked_at(live, 7200)  # the first may take hours
    live.note(step(1))
    assert not looked_at(live, 7200)  # and so may the others
    live.note(step(2))
    quick = going()
    for done in range(5):
        assert not looked_at(quick, 60)
        quick.note(step(done))
    assert not looked_at(quick, 1700)  # a full disk, a model that is loaded once more
    assert looked_at(quick, 200)


def test_a_render_that_waits_for_devices_may_do_so_for_as_long_as_the_server_says():
    """In the midst of it, where a node is lost that comes back after an hour."""
    live = going(place_timeout_s=3600.0)
    for done in range(3):
        live.note(step(done))
    assert not looked_at(live, 3 * 3600 + 1700)
    assert looked_at(live, 200)


def test_a_server_that_was_stopped_itself_blames_nobody():
    live = going()
    live.note(step(0))
    live.note(step(1))
    assert not live.stands_still(86_400)


def test_what_has_not_taken_a_step_yet_is_loading():
    live = going()
    live.note(step(1, "prompt"))
    assert not looked_at(live, 7200)


def test_a_process_that_cannot_even_be_killed_is_given_up(monkeypatch, capfd):
    """As in a driver's call that nothing interrupts."""
    monkeypatch.setattr(worker_link, "LOOK_S", 0.05)
    monkeypatch.setattr(worker_link, "_KILL_S", 0.05)

    async def main():
        process = SimpleNamespace(
            pid=0,
            returncode=None,
            stdin=SimpleNamespace(is_closing=lambda: False, close=lambda: None),
            stdout=asyncio.StreamReader(),
            kill=lambda: None,
            wait=asyncio.Event().wait,
        )
        worker = worker_link.Worker(process)
        hearing = asyncio.create_task(worker.hear())
        await asyncio.sleep(0.1)
        assert await worker.end() is None
        assert await hearing is None

    asyncio.run(asyncio.wait_for(main(), 20))
