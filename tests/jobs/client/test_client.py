"""`longreel.Client` and `AsyncClient` against a real server."""

import asyncio
import csv
import inspect
import json
import subprocess
import threading
import time

import command
import httpx
import numpy as np
import pytest
from PIL import Image
from server import SMALL, until

import longreel
from longreel.jobs.client import http
from longreel.jobs.client.batch_items import read_items
from longreel.jobs.client.batch_log import BatchLog
from longreel.jobs.client.errors import RenderFailed, ServerError
from longreel.jobs.client.wire import EventReader, FrameReader
from longreel.jobs.mp4 import decode_mp4
from longreel.jobs.png import decode_png


@pytest.fixture(scope="module")
def client(server):
    with longreel.Client(server.url) as client:
        yield client


@pytest.fixture(scope="module")
def done(client):
    render = client.render("a red circle", frames=41, seed=3, settings=SMALL)
    render.wait()
    return render


@pytest.fixture(scope="module")
def kept(done, tmp_path_factory):
    path = done.download(tmp_path_factory.mktemp("kept") / "kept.mp4")
    return np.stack([*decode_mp4(path)])


def test_a_render_is_made_waited_for_and_fetched(client, tmp_path):
    said = []
    render = client.render("a red circle", frames=17, settings=SMALL)
    info = render.wait(progress=said.append, timeout_s=120)
    assert (info.status, info.frames_done, info.fraction) == ("done", 17, 1.0)
    assert [one.fraction for one in said] == sorted(one.fraction for one in said)
    path = render.download(tmp_path / "video.mp4")
    assert len([*decode_mp4(path)]) == 17
    assert [p.name for p in tmp_path.iterdir()] == ["video.mp4"]


def test_frames_are_those_of_the_file_from_any_number(done, kept):
    for start in (0, 7, 40):
        assert np.array_equal(np.concatenate([*done.frames(start)]), kept[start:])


def test_frames_come_while_the_render_is_made(client):
    render = client.render("a red circle", frames=81, settings=SMALL)
    frames = render.frames()
    first = next(frames)
    assert render.refresh().status in ("running", "queued")
    assert len(first) + sum(map(len, frames)) == 81


def test_pictures_and_any_writer_take_the_frames(done, kept, tmp_path):
    done.download(tmp_path / "pictures")
    assert np.array_equal(np.stack([*decode_png(tmp_path / "pictures")]), kept)

    class Keep:
        def __init__(self):
            self.frames = []

        def write(self, frames):
            self.frames.extend(frames)

    keep = Keep()
    done.write(keep, start=11)
    assert np.array_equal(np.stack(keep.frames), kept[11:])
    with (
        (tmp_path / "raw").open("wb") as raw,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=raw) as pipe,
    ):
        done.write(pipe.stdin)
    assert (tmp_path / "raw").read_bytes() == kept.tobytes()


def test_events_are_told_in_order(done):
    events = [*done.events()]
    numbered = [event for event in events if event.number is not None]
    assert (numbered[0].name, numbered[-1].name) == ("admitted", "done")
    later = [*done.events(after=numbered[2].number)]
    assert later[0] == numbered[3]


def test_blocks_and_segments_are_told_while_it_runs(client):
    render = client.render("a red circle", frames=81, settings=SMALL)
    events = [*render.events()]
    names = [event.name for event in events]
    assert {"admitted", "started", "block", "segment", "progress", "done"} <= set(names)
    fractions = [e.data["progress"]["fraction"] for e in events if e.name == "progress"]
    assert fractions == sorted(fractions)
    assert any(e.data["progress"]["eta_s"] for e in events if e.name == "progress")
    blocks = [event.data["block"] for event in events if event.name == "block"]
    assert blocks == sorted(set(blocks))


def test_what_a_render_is_told_reaches_it(client):
    render = client.render("a red circle", frames=2001, settings=SMALL)
    next(render.frames())
    render.set_prompt("a blue square")
    render.pause()
    until(render.refresh, lambda info: info.status == "paused")
    with pytest.raises(ServerError, match="runs"):
        render.set_prompt("too late")
    render.resume()
    render.cancel()
    with pytest.raises(RenderFailed, match="cancelled"):
        render.wait()
    assert client.get(render.id).info.status == "cancelled"
    assert render.id in [one.id for one in client.renders(["cancelled"])]
    render.delete()
    with pytest.raises(ServerError) as missing:
        client.get(render.id)
    assert missing.value.status == 404


def test_a_request_that_cannot_be_met_says_why(client):
    with pytest.raises(ServerError, match=r"video.frames=3 comes from no whole number") as error:
        client.render("a red circle", frames=3)
    assert (error.value.status, error.value.code) == (422, "invalid_request")


def test_one_key_is_one_render(client):
    one = client.render("a red circle", frames=1, settings=SMALL, key="mine")
    assert client.render("a red circle", frames=1, settings=SMALL, key="mine").id == one.id


def test_a_live_session_waits_for_its_reader(client):
    """All 61 frames would fit into the sockets' buffers, where nobody has taken them yet."""
    render = client.render("a red circle", frames=61, settings=SMALL, pace="consumer")
    frames, got = render.frames(), 0
    # segments end at 5, 13, 21, 29; with one of them in hand nothing of it is taken
    for segment, most in ((5, 21), (13, 29)):
        while got < segment:
            got += len(next(frames))
        until(render.refresh, lambda info, most=most: info.frames_done >= most)
        for _ in range(10):  # more than ten segments' time, were it not for the reader
            threading.Event().wait(0.05)
            assert render.refresh().frames_done == most, "two segments of 12 frames ahead of it"
    render.pause()
    until(render.refresh, lambda info: info.status == "paused")
    render.resume()  # what goes on is told anew how far its reader is
    assert got + sum(map(len, frames)) == 61
    assert render.wait().status == "done"


def test_it_is_the_same_from_an_event_loop(server, kept):
    async def run():
        async with longreel.AsyncClient(server.url) as client:
            renders = [
                await client.render("a red circle", frames=41, seed=3, settings=SMALL)
                for _ in range(2)
            ]
            return await asyncio.gather(*(collect(render) for render in renders))

    async def collect(render):
        return np.concatenate([frames async for frames in render.frames()])

    for frames in asyncio.run(run()):
        assert np.array_equal(frames, kept)


def test_a_server_that_is_not_there_is_given_up_after_the_patience():
    with (
        longreel.Client("http://127.0.0.1:9", patience_s=0.3) as client,
        pytest.raises(httpx.ConnectError, match=r"127\.0\.0\.1:9 has not answered .*longreel"),
    ):
        client.get("x")


def test_a_batch_waits_once_for_a_server_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(http.Http, "patience", lambda here: http.Patience(0.3, here._url))
    (tmp_path / "a.csv").write_text("prompt\n" + "a circle\n" * 20)
    asked = ["batch", tmp_path / "a.csv", "-o", tmp_path / "out", "--url", "http://127.0.0.1:9"]
    before = time.monotonic()
    done = command.longreel(*asked)
    assert time.monotonic() - before < 5
    assert (done.code, done.out) == (1, "")
    assert done.message.startswith("http://127.0.0.1:9 has not answered for 0.3 s")


def test_a_batch_makes_what_it_can_and_goes_on_where_it_was(client, tmp_path):
    items = tmp_path / "items.csv"
    with items.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt", "frames", "seed", "name", "sampling.steps", *SMALL])
        small = [*SMALL.values()]
        rows.writerow(["a red circle", 9, 1, "one", 2, *small])
        rows.writerow(["a blue square", 3, 2, "bad", 2, *small])
        rows.writerow(["a green triangle", 9, 3, "", 2, *small])
    out = tmp_path / "out"
    told = []
    result = client.batch(items, out, concurrency=2, progress=told.append)
    assert [item.name for item in result.done] == ["one", "0003-a-green-triangle"]
    assert [item.name for item in result.failed] == ["bad"]
    assert "whole number of latents" in result.failed[0].message
    assert sorted(p.name for p in out.iterdir()) == [
        "0003-a-green-triangle.mp4",
        "batch.jsonl",
        "one.mp4",
        "sheet.jpg",
    ]
    with Image.open(result.sheet) as sheet:
        assert sheet.size == (2 * 48, 32)
    before = {render.id for render in client.renders()}
    again = client.batch(items, out, progress=False)
    assert [item.state for item in again.items] == ["done", "failed", "done"]
    assert {render.id for render in client.renders()} == before  # nothing was made twice


def test_a_folder_takes_one_batch_at_a_time(tmp_path):
    """Two that begin at once would each have keys of their own, and make every video twice."""
    first = BatchLog(tmp_path)
    with pytest.raises(ValueError, match="another batch that is going on"):
        BatchLog(tmp_path)
    first.close()
    (tmp_path / "batch.jsonl").write_bytes((tmp_path / "batch.jsonl").read_bytes() + b'{"item')
    BatchLog(tmp_path).close()
    assert len((tmp_path / "batch.jsonl").read_text().splitlines()) == 1


def test_a_batch_that_was_killed_finds_its_renders_again(client, tmp_path):
    """Its log says that it asked, and not what came of it: the key gives the same render."""
    more = {"frames": 9, "settings": SMALL}
    (asked,) = read_items([{"prompt": "a red circle", "name": "one", **more}])
    log = BatchLog(tmp_path)
    log.note(asked, "asked", 1)
    render = client.render("a red circle", key=log.key(asked, 1), **more)
    log.close()
    with (tmp_path / "batch.jsonl").open("a") as file:
        file.write('{"item": "on')  # a line that was cut short
    result = client.batch([{"prompt": "a red circle", "name": "one", **more}], tmp_path)
    assert [item.render for item in result.done] == [render.id]
    lines = [json.loads(line) for line in (tmp_path / "batch.jsonl").read_text().splitlines()]
    assert [line.get("state") for line in lines] == [None, "asked", "done"]


@pytest.mark.parametrize(
    ("items", "word"),
    [
        ([], "empty"),
        ([{"prompt": ""}], "item 1"),
        ([{"prompt": "x", "fames": 3}], "fames"),
        ([{"prompt": "x", "frames": "many"}], "number"),
        ([{"prompt": "x", "name": "../up"}], "file name"),
        ([{"prompt": "x", "name": "a"}, {"prompt": "y", "name": "a"}], "several"),
        ([{"prompt": "x", "name": "\u5149" * 90}], "file name"),
        ([{"prompt": None}], "prompt is empty"),
        ([{"prompt": "x", "frames": 9.7}], "number"),
        ([{"prompt": "x", "settings": [1]}], "settings is"),
        ([5], "item 1 of the batch: the item is 5"),
        (["y", {"prompt": ["x"]}], "item 2 of the batch: prompt="),
        ([{"prompt": "x", "image": 5}], "image=5 is no text"),
        ([{"prompt": "x", "prompt_at": 5}], "prompt_at=5 is no list"),
        ([{"prompt": "x", "prompt_at": {"2.5": "y"}}], "write it like"),
        ([{"prompt": "x", "prompt_at": [[2.5, None]]}], "is no list of seconds"),
    ],
)
def test_a_batch_that_is_wrong_is_refused_before_anything_is_asked(items, word):
    with pytest.raises(ValueError, match=word):
        read_items(items)


def test_files_of_a_batch_are_read_by_their_suffix(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "x", "sampling.steps": 2}\n\n{"prompt": "y"}\n')
    (tmp_path / "b.csv").write_text("prompt,seed\nx,4\ny,\n")
    first = read_items(tmp_path / "a.jsonl")
    assert [(item.prompt, dict(item.more)) for item in first] == [
        ("x", {"settings": {"sampling.steps": 2}}),
        ("y", {}),
    ]
    assert [dict(item.more) for item in read_items(tmp_path / "b.csv")] == [{"seed": 4}, {}]
    more = {"image": tmp_path / "a.png", "prompt_at": [(1, "y")]}
    (item,) = read_items([{"prompt": "x", "name": 7, **more}])
    assert (item.name, item.more) == ("7", more)
    (item,) = read_items([{"prompt": "x", "name": None, "frames": "9", "seed": 2**53 + 1}])
    assert (item.name, dict(item.more)) == ("0001-x", {"frames": 9, "seed": 2**53 + 1})
    null = {"sampling.guidance_low": None}  # of a setting it is a value
    for given in ({"settings": null}, null):
        (item,) = read_items([{"prompt": "x", **given}])
        assert item.more["settings"] == null
    with pytest.raises(ValueError, match="neither"):
        read_items(tmp_path / "b.txt")


def test_bytes_may_come_in_any_pieces():
    frames = np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3)
    data = b"".join(
        (8 + 12).to_bytes(4, "big") + (5 + i).to_bytes(8, "big") + frame.tobytes()
        for i, frame in enumerate(frames)
    )
    for size in (1, 7, 25, 100):
        reader, got = FrameReader(2, 2, 5), []
        for start in range(0, len(data), size):
            if (some := reader.feed(data[start : start + size])) is not None:
                got.append(some)
        assert np.array_equal(np.concatenate(got), frames)
    with pytest.raises(ValueError, match="frame 5"):
        FrameReader(2, 2, 4).feed(data)
    reader, events = EventReader(), []
    for (
        letter
    ) in 'id: 7\nevent: segment\ndata: {"a": 1}\n\n: beat\n\nevent: progress\ndata: {}\n\n':
        events += reader.feed(letter)
    assert [(e.name, e.number) for e in events] == [("segment", 7), ("progress", None)]
    assert reader.last == 7


def test_what_help_shows_of_a_client_is_its_own():
    assert inspect.signature(longreel.Client.render).return_annotation == "Render"
    assert {*longreel.__all__} <= {*dir(longreel)}
    assert all(getattr(longreel, name).__doc__ for name in longreel.__all__)
