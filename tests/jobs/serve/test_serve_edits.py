"""The server's side of edits, with renders made in this process."""

import asyncio
import contextlib
import io
import json
import shutil
import threading
import time
from collections import deque
from functools import partial
from types import SimpleNamespace

import av
import httpx
import numpy as np
import pytest
from app import call, made, on_a_port, open_app
from server import SMALL, asked
from starlette.websockets import WebSocket
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import longreel
from longreel.jobs.home.edits import extend
from longreel.jobs.home.record import RenderRun
from longreel.jobs.serve import routes_socket
from longreel.jobs.serve.errors import ApiError
from longreel.jobs.serve.pace import is_paced
from longreel.jobs.serve.streams import pieces, segments_from
from longreel.jobs.serve.warm_run import WarmRun


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Homes with a finished render each, by what was asked for, made once."""
    place, homes = tmp_path_factory.mktemp("kept"), {}

    def home_with(**request):
        key = tuple(request.items())
        if key not in homes:
            home = place / str(len(homes))
            with open_app(home) as app:
                homes[key] = home, made(app, **request)
        return homes[key]

    return home_with


@pytest.fixture
def opened(kept, tmp_path):
    """A server over a copy of such a home, and its render."""
    with contextlib.ExitStack() as closes:

        def open_copy(**request):
            home, render = kept(**request)
            copy = shutil.copytree(home, tmp_path / "home")
            return closes.enter_context(open_app(copy)), render

        yield open_copy


def finish(app, render):
    here = app.state.context
    assert here.queue.get(render).state == "queued"
    assert RenderRun(here.files.home.open(render)).run().state == "done"
    here.queue.end(render, "done", time.time())


def video(app, render):
    data = call(app, "GET", f"/api/v1/renders/{render}/video").content
    with av.open(io.BytesIO(data)) as file:
        return data, np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def test_a_render_is_extended_and_redone_in_place(opened):
    app, render = opened(frames=33)
    old, _ = video(app, render)
    answer = call(app, "POST", f"/api/v1/renders/{render}/extend", json={"seconds": 1}).json()
    assert (answer["status"], answer["frames"], answer["error"]) == ("queued", 41, None)
    assert answer["progress"]["of"] == 41
    finish(app, render)
    longer, more = video(app, render)
    assert longer.startswith(old)
    assert len(more) == 41
    section = {"first": 16, "stop": 18, "prompt": "a blue square"}
    answer = call(app, "POST", f"/api/v1/renders/{render}/redo", json=section).json()
    assert 0.1 < answer["progress"]["fraction"] < 0.9
    files = app.state.context.files.of(render)
    assert video(app, render)[0] == longer  # until it is done
    parts = files.parts(files.segments())
    finish(app, render)
    assert b"".join(pieces(parts, 0, len(longer))) == longer  # a download that has begun
    changed = (video(app, render)[1] != more).any(axis=(1, 2, 3))
    assert changed[16:18].all()
    assert not changed[:9].any()
    assert not changed[33:].any()


async def read_broken(url, id, meanwhile):
    """Frames as our client has them whose connection breaks after two; then it is made anew."""
    async with longreel.AsyncClient(url) as client:
        render = await client.get(id)
        stream = render._http.stream

        @contextlib.asynccontextmanager
        async def breaks(path, **asked):
            async def some():
                async for data in answer.aiter_raw():
                    yield data[: 2 * len(data) // 3]
                    break
                await asyncio.to_thread(meanwhile)
                raise httpx.ReadError("broken")

            async with stream(path, **asked) as answer:
                render._http.stream = stream
                yield SimpleNamespace(headers=answer.headers, aiter_raw=some)

        render._http.stream = breaks
        return [frame.tobytes() async for frames in render.frames() for frame in frames]


def pixels_of(data):
    """Of raw frames."""
    while data:
        size = int.from_bytes(data[:4], "big")
        yield data[12 : 4 + size]
        data = data[4 + size :]


def test_every_way_out_gives_one_cut_of_a_video(opened):
    """Old frames to whoever began with them, also where the connection is made anew."""
    app, render = opened(frames=33)
    path = f"/api/v1/renders/{render}"

    def frames(**asked):
        answer = call(app, "GET", f"{path}/frames", params=asked)
        return answer, answer.content

    def playlist():
        lines = call(app, "GET", f"{path}/hls/index.m3u8").text.splitlines()
        assert lines[-1] == "#EXT-X-ENDLIST"
        return ["init.mp4", *(line for line in lines if not line.startswith("#"))]

    def fetched(names):
        return b"".join(call(app, "GET", f"{path}/hls/{name}").content for name in names)

    (_, old), names, (file, _) = frames(), playlist(), video(app, render)
    call(app, "POST", f"{path}/redo", json={"first": 16, "stop": 18})
    answer, part = frames(start=20)
    assert (answer.headers["x-longreel-cut"], answer.headers["x-longreel-frames"]) == ("0", "33")
    assert old.endswith(part)
    assert playlist() == names
    with on_a_port(app) as url:
        seen = asyncio.run(read_broken(url, render, lambda: finish(app, render)))
    assert b"".join(seen) == b"".join(pixels_of(old))
    answer, rest = frames(start=10, cut=0)
    assert (answer.headers["x-longreel-cut"], answer.headers["x-longreel-frames"]) == ("0", "33")
    assert old.endswith(rest)
    assert fetched(names) == file
    answer, new = frames()
    assert (answer.headers["x-longreel-cut"], new == old) == ("1", False)
    assert "x-longreel-frames" not in answer.headers
    assert fetched(playlist()) == video(app, render)[0] != file
    with on_a_port(app) as url:
        socket = f"{url.replace('http', 'ws')}{path}/stream"
        for cut, whole in [(0, file), (1, video(app, render)[0])]:
            parts = []
            with connect(f"{socket}?cut={cut}") as opened:
                while (said := json.loads(opened.recv(timeout=60)))["type"] != "end":
                    assert said.get("cut", cut) == cut
                    parts.append(opened.recv(timeout=60))
            assert b"".join(parts) == whole
        call(app, "POST", f"{path}/extend", json={"frames": 8})  # removes what was replaced
        with connect(f"{socket}?cut=0") as gone:
            assert "cut 0 of render" in json.loads(gone.recv(timeout=60))["message"]
            with pytest.raises(ConnectionClosed) as closed:
                gone.recv(timeout=60)
        assert closed.value.rcvd.code == 4409
    answer, _ = frames(start=10, cut=0)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "replaced")
    assert call(app, "GET", f"{path}/hls/{names[-2]}").status_code == 404


def test_a_redo_of_a_live_session_waits_for_no_reader(opened):
    """Of whom there can be none: until it is done, everybody sees the old video."""
    app, render = opened(frames=17, pace="consumer")
    record = app.state.context.queue.get(render)
    assert is_paced(record.request)
    call(app, "POST", f"/api/v1/renders/{render}/redo", json={"first": 8, "stop": 9})
    record = app.state.context.queue.get(render)
    assert not is_paced(record.request)
    told = []
    run = WarmRun(lambda event, **facts: told.append(event))
    run.expect(render)
    folder = app.state.context.files.home.open(render)
    assert run.go(folder, {"request": record.request}) == "done"
    app.state.context.queue.end(render, "done", time.time())
    call(app, "POST", f"/api/v1/renders/{render}/extend", json={"frames": 8})
    assert is_paced(app.state.context.queue.get(render).request)


def test_a_socket_whose_cut_is_taken_away_while_it_sends_says_so(opened, monkeypatch):
    app, render = opened(frames=33)
    go_on = threading.Event()

    async def slowly(*arguments):
        async for item in segments_from(*arguments):
            yield item
            await asyncio.to_thread(go_on.wait, 60)

    monkeypatch.setattr(routes_socket, "segments_from", slowly)
    with (
        on_a_port(app) as url,
        connect(f"{url.replace('http', 'ws')}/api/v1/renders/{render}/stream") as socket,
    ):
        assert [json.loads(socket.recv(30))["type"], socket.recv(30)][0] == "init"
        assert [json.loads(socket.recv(30))["type"], socket.recv(30)][0] == "segment"
        body = {"first": 16, "stop": 18}
        assert call(app, "POST", f"/api/v1/renders/{render}/redo", json=body).status_code == 200
        finish(app, render)
        body = {"frames": 8}  # the next edit removes the files of the cut before
        assert call(app, "POST", f"/api/v1/renders/{render}/extend", json=body).status_code == 200
        go_on.set()
        said = deque(maxlen=1)
        with pytest.raises(ConnectionClosed) as closed:
            said.extend(iter(partial(socket.recv, 30), None))
    assert (json.loads(said[0])["type"], closed.value.rcvd.code) == ("error", 4409)


def test_no_answer_comes_between_a_message_and_the_bytes_that_it_announces(opened, monkeypatch):
    app, render = opened(frames=33)
    send = WebSocket.send_json

    async def slowly(socket, data):
        await send(socket, data)
        await asyncio.sleep(0.05)  # as where the reader's side is full

    monkeypatch.setattr(WebSocket, "send_json", slowly)
    answers = 0
    with (
        on_a_port(app) as url,
        connect(f"{url.replace('http', 'ws')}/api/v1/renders/{render}/stream") as socket,
    ):
        for number in range(9):
            socket.send(json.dumps({"type": "prompt", "number": number, "prompt": "x"}))
        while (said := json.loads(socket.recv(30)))["type"] != "end":
            if said["type"] in ("init", "segment"):
                assert len(socket.recv(30)) == said["bytes"]
            else:
                answers += 1
    assert answers


def test_a_file_that_an_edit_takes_between_its_name_and_its_reading_is_replaced(opened):
    app, render = opened(frames=9)
    path = f"/api/v1/renders/{render}"
    lines = call(app, "GET", f"{path}/hls/index.m3u8").text.splitlines()
    name = next(line for line in lines if line.endswith(".m4s"))
    (app.state.context.files.of(render).folder.path / "segments" / name).unlink()
    for way in (f"hls/{name}", "thumbnail"):
        answer = call(app, "GET", f"{path}/{way}")
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (409, "replaced")
        assert "/segments/" not in error["message"]


@pytest.mark.parametrize("named", ["by its id", "by itself"])
def test_an_extension_is_another_video_that_begins_with_the_first(opened, named):
    app, render = opened(frames=17)
    old, _ = video(app, render)
    said = {"prompt": "a blue square", "seconds": "1"}
    if named == "by its id":
        how = {"json": {**said, "video": {"id": render}}}
    else:
        form = {name: (None, value) for name, value in said.items()}
        how = {"files": {**form, "video": ("mine.mp4", old)}}
    answer = call(app, "POST", "/v1/videos/extensions", **how).json()
    assert (answer["remixed_from_video_id"], answer["prompt"]) == (render, "a blue square")
    assert (answer["status"], float(answer["seconds"])) == ("queued", 25 / SMALL["video.fps"])
    again = call(
        app, "POST", "/v1/videos/extensions", headers={"x-stainless-retry-count": "1"}, **how
    ).json()
    assert again["id"] == answer["id"] != render
    finish(app, answer["id"])
    assert video(app, answer["id"])[0].startswith(old)
    assert video(app, render)[0] == old
    call(app, "DELETE", f"/v1/videos/{render}")
    assert len(video(app, answer["id"])[1]) == 25  # its files are its own


def test_a_video_that_was_sent_is_found_beside_others_whose_files_are_gone(opened):
    app, render = opened(frames=17)
    here = app.state.context
    other = call(app, "POST", "/api/v1/renders", json=asked(frames=1)).json()["id"]
    here.queue.end(other, "done", time.time())
    shutil.rmtree(here.files.of(other).folder.path)
    form = {"prompt": (None, "x"), "seconds": (None, "1"), "video": ("v", video(app, render)[0])}
    answer = call(app, "POST", "/v1/videos/extensions", files=form)
    assert answer.json()["remixed_from_video_id"] == render
    form["video"] = ("v", b"another")
    assert call(app, "POST", "/v1/videos/extensions", files=form).status_code == 422


def test_a_list_is_given_while_the_files_of_a_render_in_it_are_removed(opened, monkeypatch):
    app, render = opened(frames=9)
    files, looks = app.state.context.files, []
    find = files.of

    def gone_after_one_look(id):
        looks.append(id)
        if len(looks) > 1:
            raise ApiError(404, "files_gone", "its files are not here any more")
        return find(id)

    monkeypatch.setattr(files, "of", gone_after_one_look)
    answer = call(app, "GET", "/api/v1/renders")
    assert [one["id"] for one in answer.json()["data"]] == [render]


def test_a_render_is_not_copied_or_removed_while_it_is_edited(opened):
    app, render = opened(frames=17)
    path, body = f"/api/v1/renders/{render}", {"prompt": "x", "seconds": "1"}

    async def at_once():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return await asyncio.gather(
                http.post(f"{path}/extend", json={"frames": 8}),
                http.post("/v1/videos/extensions", json={**body, "video": {"id": render}}),
                http.delete(path),
            )

    call(app, "GET", path)  # its files are at hand, or each would wait for them for a while
    edited, copied, removed = asyncio.run(at_once())
    assert (edited.status_code, removed.status_code) == (200, 200)
    assert (copied.status_code, copied.json()["error"]["code"]) == (409, "not_done")
    assert app.state.context.files.home.names() == []


def test_an_edit_that_was_lost_on_its_way_to_the_queue_is_made_first(opened):
    """The server ended between the two: the folder knows of it, the queue does not."""
    app, render = opened(frames=9)
    extend(app.state.context.files.home.open(render), 8)
    answer = call(app, "POST", f"/api/v1/renders/{render}/extend", json={"frames": 4})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "not_done")
    seen = call(app, "GET", f"/api/v1/renders/{render}").json()
    assert (seen["status"], seen["frames"]) == ("queued", 17)


@pytest.mark.parametrize(
    ("edit", "body"), [("extend", {"frames": 32}), ("redo", {"first": 8, "stop": 28})]
)
def test_an_edit_that_was_cancelled_is_dropped(opened, edit, body):
    """Some of it was made; the video is what it was, and can be edited again."""
    app, render = opened(frames=33)
    path, before = f"/api/v1/renders/{render}", video(app, render)[0]
    blocks = call(app, "GET", path).json()["progress"]["of_blocks"]
    call(app, "POST", f"{path}/{edit}", json=body)
    waits = call(app, "POST", f"{path}/drop")
    assert (waits.status_code, waits.json()["error"]["code"]) == (409, "queued")
    folder = app.state.context.files.home.open(render)
    begun = folder.frames_done

    def stop_midway(*_):
        if folder.frames_done > begun:
            run.stop("cancelled")

    run = RenderRun(folder, stop_midway)
    assert run.run().state == "cancelled"
    call(app, "POST", f"{path}/cancel")
    answer = call(app, "POST", f"{path}/drop").json()
    assert (answer["status"], answer["frames"], answer["progress"]["fraction"]) == ("done", 33, 1)
    assert answer["progress"]["of_blocks"] == blocks
    assert video(app, render)[0] == before
    again = call(app, "POST", f"{path}/drop")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "no_edit")
    call(app, "POST", f"{path}/extend", json={"frames": 8})
    finish(app, render)
    longer, pictures = video(app, render)
    assert longer.startswith(before)
    assert len(pictures) == 41


REFUSED = [
    ("extend", {"frames": 6}, "frames", "use 4 or 8"),
    ("extend", {}, "frames", "give one of them"),
    ("extend", {"frames": 4, "seconds": 1}, "frames", "give one of them"),
    ("extend", {"frames": 10_000_000}, "frames", "more than the 57601"),
    ("redo", {"first": 8, "stop": 8}, "stop", "holds no frame"),
    ("redo", {"first": 0, "stop": 99}, "stop", "is not inside render"),
]


def test_what_cannot_be_edited_is_refused_and_stays_done(opened):
    app, render = opened(frames=9)
    for path, body, field, said in REFUSED:
        answer = call(app, "POST", f"/api/v1/renders/{render}/{path}", json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (422, field)
        assert said in error["message"]
    assert call(app, "GET", f"/api/v1/renders/{render}").json()["status"] == "done"
