"""What a video says of itself before it is read, and which render one is of that comes back."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from app import call, made, on_a_port, open_app
from server import asked

from longreel.jobs.home.journal import JournalReader
from longreel.jobs.home.record import RenderRun
from longreel.jobs.serve.streams import pieces


@pytest.mark.parametrize("way", ["/api/v1/renders/{}/video", "/v1/videos/{}/content"])
def test_head_says_what_get_would_and_sends_nothing(tmp_path, way):
    """Players and `curl -I` ask so before they take ranges."""
    with open_app(tmp_path) as app, on_a_port(app) as url:
        done = made(app, frames=9)
        coming = call(app, "POST", "/api/v1/renders", json=asked(frames=9)).json()["id"]
        with httpx.Client(base_url=url, timeout=20) as http:
            whole = http.get(way.format(done))
            for headers in ({}, {"range": "bytes=10-19"}):  # which only GET knows
                head = http.head(way.format(done), headers=headers)
                assert (head.status_code, head.content) == (200, b"")
                for name in ("content-length", "content-type", "etag", "accept-ranges"):
                    assert head.headers[name] == whole.headers[name]
            for known in ("{}", "W/{}", '"another", {}', "*"):  # as proxies send them
                fresh = {"if-none-match": known.format(whole.headers["etag"])}
                assert http.head(way.format(done), headers=fresh).status_code == 304
                assert http.get(way.format(done), headers=fresh).status_code == 304
            head = http.head(way.format(coming))  # at once, though no frame is there
            assert (head.status_code, head.headers["accept-ranges"]) == (200, "none")
            assert "content-length" not in head.headers
            assert http.head(way.format("20200101-000000-nothere")).status_code == 404
            part = http.get(way.format(done), headers={"range": "bytes=10-19"})
            assert (part.status_code, part.content) == (206, whole.content[10:20])


def test_a_video_that_comes_back_is_found_without_opening_every_render_again(tmp_path, monkeypatch):
    with open_app(tmp_path) as app:
        renders = [made(app, frames=frames) for frames in (5, 9, 13)]
        videos = [call(app, "GET", f"/api/v1/renders/{id}/video").content for id in renders]
        files, looks = app.state.context.files, []
        find = files.of

        def counted(render):
            looks.append((render, threading.current_thread() is threading.main_thread()))
            return find(render)

        monkeypatch.setattr(files, "of", counted)

        def remixed(video):
            looks.clear()
            form = {"prompt": (None, "x"), "video": ("v.mp4", video)}
            answer = call(app, "POST", "/v1/videos/edits", files=form)
            return answer.json().get("remixed_from_video_id"), {
                render for render, _ in looks if render in renders
            }

        assert remixed(videos[1]) == (renders[1], {*renders})
        # not by the event loop, which all clients share
        assert not any(is_loop for render, is_loop in looks if render in (renders[0], renders[2]))
        assert remixed(videos[2]) == (renders[2], {renders[2]})
        assert remixed(b"another") == (None, set())
        call(app, "POST", f"/api/v1/renders/{renders[1]}/extend", json={"frames": 4})
        RenderRun(files.home.open(renders[1])).run()
        app.state.context.queue.end(renders[1], "done", time.time())
        assert remixed(videos[1]) == (None, {renders[1]})  # it is another video by now
        longer = call(app, "GET", f"/api/v1/renders/{renders[1]}/video").content
        assert remixed(longer) == (renders[1], {renders[1]})


def test_a_file_that_is_removed_with_its_render_while_it_is_asked_for_is_404(tmp_path, monkeypatch):
    with open_app(tmp_path) as app:
        render = made(app, frames=5)
        files = app.state.context.files.of(render)

        def removed(*_):
            app.state.context.files.remove(render)
            raise FileNotFoundError(files.folder.init)

        monkeypatch.setattr(files, "parts", removed)
        answer = call(app, "GET", f"/api/v1/renders/{render}/video")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "files_gone")


def test_who_knows_how_a_render_stands_is_not_told_again(tmp_path):
    with open_app(tmp_path) as app:
        path = f"/api/v1/renders/{made(app, frames=1)}"
        tag = call(app, "GET", path).headers["etag"]
        for known in (tag, f"W/{tag}", f'"another", {tag}'):
            assert call(app, "GET", path, headers={"if-none-match": known}).status_code == 304
        assert call(app, "GET", path, headers={"if-none-match": '"another"'}).status_code == 200


def test_who_asks_whether_it_is_ready_hears_when_to_ask_again(tmp_path):
    with open_app(tmp_path) as app:
        for method in ("GET", "HEAD"):
            assert call(app, method, "/readyz").status_code == 200
            assert call(app, method, "/healthz").status_code == 200
        app.state.context.ready = False
        answer = call(app, "GET", "/readyz")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize("path", ["/api/v1/renders", "/v1/videos"])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_a_list_goes_on_after_a_render_that_was_removed_meanwhile(tmp_path, path, order):
    """As where each of a page is deleted before the next page is asked for."""
    with open_app(tmp_path) as app:
        for _ in range(5):
            assert call(app, "POST", "/api/v1/renders", json=asked(frames=1)).status_code == 201
        seen, more, asks = [], True, {"limit": 2, "order": order}
        while more:
            page = call(app, "GET", path, params=asks).json()
            for one in page["data"]:
                seen.append(one["id"])
                assert call(app, "DELETE", f"{path}/{one['id']}").status_code == 200
            more, asks = page["has_more"], asks | {"after": page["last_id"]}
        assert len(seen) == 5
        assert seen == sorted(seen, reverse=order == "desc")


def test_no_journal_is_read_by_the_event_loop(tmp_path, monkeypatch):
    """Of a render of hours that takes long, and all clients would wait."""
    with open_app(tmp_path) as app:
        render, read = made(app, frames=9), []
        poll = JournalReader.poll

        def told(reader):
            if events := poll(reader):
                read.append(threading.current_thread() is threading.main_thread())
            return events

        monkeypatch.setattr(JournalReader, "poll", told)
        ours, theirs = f"/api/v1/renders/{render}", f"/v1/videos/{render}"
        ways = ("", "/video", "/frames", "/events", "/hls/index.m3u8", "/thumbnail")
        for path in ("/api/v1/renders", "/v1/videos", theirs, *(f"{ours}{way}" for way in ways)):
            app.state.context.files._open.clear()
            app.state.context.statuses._kept.clear()
            read.clear()
            assert call(app, "GET", path).status_code == 200
            assert read, path
            assert not any(read), path


def test_a_journal_that_is_being_read_holds_up_only_who_asks_for_its_render(tmp_path, monkeypatch):
    """The second of them found the render open, and waited on the event loop for the first."""
    begun, may = threading.Event(), threading.Event()
    with open_app(tmp_path) as app, on_a_port(app) as url:
        render, poll = made(app, frames=9), JournalReader.poll

        def slow(reader):
            begun.set()
            may.wait(20)
            return poll(reader)

        def ask(path):
            return httpx.get(f"{url}{path}", timeout=30).status_code

        monkeypatch.setattr(JournalReader, "poll", slow)
        app.state.context.files._open.clear()
        app.state.context.statuses._kept.clear()
        with ThreadPoolExecutor() as threads:
            path = f"/api/v1/renders/{render}"
            asking = [threads.submit(ask, path)]
            assert begun.wait(20)
            asking.append(threads.submit(ask, path))
            time.sleep(0.3)  # it has come to the same journal
            try:
                assert httpx.get(f"{url}/healthz", timeout=3).status_code == 200
            finally:
                may.set()
            assert [one.result() for one in asking] == [200, 200]


def test_who_leaves_in_the_midst_of_a_video_leaves_no_file_open(tmp_path):
    """As a browser does wherever its user seeks; some stayed open until garbage was looked for."""
    with open_app(tmp_path) as app:
        render = made(app, frames=17)
        files = app.state.context.files.of(render)
        left = [pieces(files.parts(files.segments()), 0, 10**9) for _ in range(3)]
        for reader in left:
            assert next(reader)
        open_files = [os.path.realpath(file) for file in Path("/proc/self/fd").iterdir()]
        assert [file for file in open_files if render in file] == []
