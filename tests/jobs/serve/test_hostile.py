"""What must not get in: each gets an answer of 400 to 499 in the envelope, and leaves no file."""

import base64
import io
import json
import shutil
import socket
from pathlib import Path

import pytest
from app import call, on_a_port, open_app
from PIL import Image
from server import asked

from longreel.jobs.home import manifest
from longreel.jobs.home.home import Home
from longreel.jobs.serve import run_server
from longreel.jobs.serve.app import make_app
from longreel.jobs.serve.limits import Limits

JSON = {"content-type": "application/json"}
LIMITS = Limits(body_bytes=200_000, prompt_chars=100, frames=500, pixels=64 * 96, queued=3,
                upload_pixels=10_000)  # fmt: skip


def files_in(folder: Path):
    """But for the queue's own."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and "sqlite" not in p.name)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with open_app(tmp_path_factory.mktemp("home"), limits=LIMITS) as app:
        yield app


def home_of(app):
    return app.state.context.files.home.path


def picture(width, height, kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def refused(app, method, path, **more):
    before = files_in(home_of(app))
    answer = call(app, method, path, **more)
    assert 400 <= answer.status_code < 500, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert str(home_of(app)) not in answer.text
    assert "Traceback" not in answer.text
    assert files_in(home_of(app)) == before
    return answer.status_code, answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"{", 400, "JSON"),
        (b"[]", 422, ""),
        (b"\xff\xfe", 400, ""),
        (b"[" * 100_000, 400, "pars"),
        (b'{"prompt": "x", "\\ud800": 1}', 422, "unicode"),
        (b'{"prompt": "x", "settings": {"video.\\ud800": 1}}', 422, "?"),
        ({}, 422, "prompt"),
        ({"prompt": "  "}, 422, "prompt"),
        ({"prompt": "x" * 101}, 422, "100"),
        ({"prompt": "x", "surprise": 1}, 422, "surprise"),
        ({"prompt": "x", "frames": 501}, 422, "video.frames"),
        ({"prompt": "x", "frames": 0}, 422, "frames"),
        ({"prompt": "x", "frames": 3}, 422, "latents"),
        ({"prompt": "x", "settings": {"video.frames": 0}}, 422, "never ends"),
        ({"prompt": "x", "settings": {"video.frames": 10**9 + 1}}, 422, "video.frames"),
        ({"prompt": "x", "settings": {"video.width": 960}}, 422, "more than"),
        ({"prompt": "x", "settings": {"sampling.steps": 900}}, 422, "sampling.steps"),
        ({"prompt": "x", "settings": {"model.checkpoint": "/etc"}}, 422, "not a client's"),
        ({"prompt": "x", "settings": {"model.device": "cuda"}}, 422, "not a client's"),
        ({"prompt": "x", "settings": {"parallel.address": "1.2.3.4:1"}}, 422, "not a client's"),
        ({"prompt": "x", "settings": {"video.last_image": "/etc/passwd"}}, 422, "not a client's"),
        ({"prompt": "x", "settings": {"output.format": "png"}}, 422, "not a client's"),
        ({"prompt": "x", "settings": {"video.last_image ": "/etc/passwd"}}, 422, "not a client's"),
        ({"prompt": "x", "settings": {"video.last_image=/x\n": "y"}}, 422, "not a client's"),
        ({"prompt": "x", "settings": {"output.format\t": "png"}}, 422, "not a client's"),
        ({"prompt": "x", "settings": {" model.device": "cuda"}}, 422, "not a client's"),
        ({"prompt": "x", "settings": {"blocks.left": 501}}, 422, "blocks.left"),
        ({"prompt": "x", "settings": {"video.fps": "${oc.env:HOME}"}}, 422, "whole number"),
        ({"prompt": "x", "settings": {"video.fps": "!!python/object:os.system"}}, 422, "whole"),
        ({"prompt": "x", "preset": "/etc/passwd.yaml"}, 422, "opens no file"),
        ({"prompt": "x", "preset": "../../secret"}, 422, "no preset"),
        ({"prompt": "x", "preset": "wan2.1-t2v-14b", "frames": 1}, 422, ""),
        ({"prompt": "x", "seed": -1}, 422, "seed"),
        ({"prompt": "x", "seed": 2**63}, 422, "seed"),
        ({"prompt": "x", "seed": 1e400}, 422, "seed"),
        ({"prompt": "x", "prompt_at": [{"seconds": 99, "prompt": "y"}]}, 422, "prompt_at"),
        ({"prompt": "x", "deadline_s": 0}, 422, "deadline"),
        ({"prompt": "x", "image": "%%%"}, 422, "base64"),
        ({"prompt": "x", "image": base64.b64encode(b"GIF89a no").decode()}, 422, "PNG"),
        ({"prompt": "x", "image": picture(101, 100)}, 422, "pixels"),
        ({"prompt": "x", "image": picture(9, 9, "GIF")}, 422, "PNG"),
        ({"prompt": "x", "image": picture(9, 9)}, 422, "takes a prompt alone"),
        ({"prompt": "x", "settings": {"sampling.negative_prompt": "n" * 200}}, 422, "100"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_bad_request_is_refused_and_leaves_nothing(app, body, status, word):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    got, error = refused(app, "POST", "/api/v1/renders", content=content, headers=headers)
    assert got == status, error
    assert word in error["message"], error


@pytest.mark.parametrize(
    ("method", "path", "body", "param", "word"),
    [
        ("POST", "", {"content": b'{"prompt": x}', "headers": JSON}, None, "character 11"),
        ("POST", "", {"content": b'{"prompt": "x"}'}, None, "`content-type: application/json`"),
        ("POST", "", {"json": {"prompt": "x", "settings": {"model.device": "y"}}}, "model.device",
         "not a client's"),
        ("POST", "", {"json": {"prompt": "x", "frames": 17, "seconds": 2}}, "frames", "only one"),
        ("POST", "", {"json": {"prompt": "x", "settings": {"sampling.steps": {"a": 1}}}},
         "settings.sampling.steps", "a setting is a number"),
        ("GET", "?after=nobody", {}, "after", "no render nobody"),
        ("GET", "?limit=0", {}, "limit", "greater than"),
        ("GET", "/nobody", {}, "id", "no render nobody"),
    ],
)  # fmt: skip
def test_an_error_names_the_field_that_the_request_has(app, method, path, body, param, word):
    _, error = refused(app, method, f"/api/v1/renders{path}", **body)
    assert error["param"] == param
    assert word in error["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/renders/..%2f..%2fetc%2fpasswd",
        "/api/v1/renders/%2e%2e/video",
        "/api/v1/renders/x/hls/..%2f..%2fmanifest.json",
        "/api/v1/renders/queue.sqlite3",
        "/api/v1/renders/" + "x" * 5000,
        "/api/v1/renders/nobody/hls/init.mp4",
        "/page/../../pyproject.toml",
        "/%00",
        "/docs",
    ],
)
def test_no_path_leads_out_of_the_renders(app, path):
    refused(app, "GET", path)


def test_a_large_body_is_not_read(app):
    status, error = refused(app, "POST", "/api/v1/renders", content=b"x" * 200_001)
    assert (status, error["code"]) == (413, "body_too_large")

    async def endless():
        while True:
            yield b"x" * 50_000

    status, error = refused(app, "POST", "/v1/videos", content=endless())
    assert (status, error["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"--x\r\nnot a form", "multipart/form-data; boundary=x"),
        (b"prompt=x", "multipart/form-data"),
        (b"--y\r\n\r\n", "multipart/form-data; boundary=x"),
        (b"\x00" * 1000, "multipart/form-data; boundary=\x00".replace("\x00", "-")),
        (b"prompt", "text/plain"),
        (b"", "multipart/form-data; boundary=x"),
        (b'{"prompt": "x", "input_reference": {"image_url": "http://127.0.0.1/"}}',
         "application/json"),
        (b'{"prompt": "x", "input_reference": {"image_url": "file:///etc/passwd"}}',
         "application/json"),
        (b'{"prompt": "x", "size": "99999x1"}', "application/json"),
        (b'{"prompt": "x", "seconds": "-4"}', "application/json"),
        (b'{"prompt": "x", "model": "../x.yaml"}', "application/json"),
        (b"[" * 100_000, "application/json"),
        (b'{"prompt": "x", "\\ud800": 1}', "application/json"),
    ],
)  # fmt: skip
def test_a_bad_form_is_refused(app, content, kind):
    refused(app, "POST", "/v1/videos", content=content, headers={"content-type": kind})


def test_a_picture_of_a_million_pixels_that_packs_to_nothing_is_refused(app):
    file = io.BytesIO()
    Image.new("1", (4000, 4000)).save(file, "PNG")
    assert len(file.getvalue()) < 10_000
    status, error = refused(
        app, "POST", "/v1/videos", data={"prompt": "x"},
        files={"input_reference": ("../../evil.png", file.getvalue(), "image/png")},
    )  # fmt: skip
    assert status == 422
    assert "pixels" in error["message"]


def test_the_largest_picture_that_a_body_holds_is_looked_at(tmp_path):
    with open_app(tmp_path / "home") as app:
        status, error = refused(
            app, "POST", "/v1/videos", data={"prompt": "x"},
            files={"input_reference": ("a.png", b"x" * (2**24 - 2000), "image/png")},
        )  # fmt: skip
        assert (status, error["param"]) == (422, "image")


def test_a_client_fills_its_own_queue_and_no_more(tmp_path):
    with open_app(tmp_path / "home", limits=LIMITS) as app:
        for _ in range(3):
            made = call(app, "POST", "/api/v1/renders", json=asked(frames=1))
            assert made.status_code == 201
        status, error = refused(app, "POST", "/api/v1/renders", json=asked(frames=1))
        assert (status, error["code"]) == (429, "queue_full")
        path = f"/api/v1/renders/{made.json()['id']}"
        assert call(app, "POST", f"{path}/cancel").status_code == 200
        assert call(app, "POST", "/api/v1/renders", json=asked(frames=1)).status_code == 201
        assert refused(app, "POST", f"{path}/resume")[0] == 429


def test_a_render_whose_files_somebody_removed_is_listed_and_can_be_deleted(tmp_path):
    with open_app(tmp_path / "home") as app:
        made = call(app, "POST", "/api/v1/renders", json=asked(frames=1)).json()["id"]
        shutil.rmtree(tmp_path / "home" / "renders" / made)
        (listed,) = call(app, "GET", "/api/v1/renders").json()["data"]
        assert (listed["id"], listed["progress"]["frames"]) == (made, 0)
        for way in ("frames", "hls/index.m3u8", "events", "thumbnail"):
            answer = call(app, "GET", f"/api/v1/renders/{made}/{way}")
            assert answer.json()["error"]["code"] == "files_gone"
        assert call(app, "DELETE", f"/api/v1/renders/{made}").status_code == 200
        assert call(app, "GET", "/api/v1/renders").json()["data"] == []


def test_a_render_is_opened_without_a_look_at_all_the_others(tmp_path, monkeypatch):
    """A page of a hundred took seconds where there were thousands, and nobody else an answer."""
    looks = {"names": 0, "merge": 0}

    def counted(owner, name, key):
        work = getattr(owner, name)

        def call(*arguments):
            looks[key] += 1
            return work(*arguments)

        monkeypatch.setattr(owner, name, call)

    with open_app(tmp_path / "home") as app:
        for prompt in ("x", "y", "z"):
            call(app, "POST", "/api/v1/renders", json=asked(prompt, frames=1))
        app.state.context.files._open.clear()
        manifest._config.cache_clear()
        counted(Home, "names", "names")
        counted(manifest, "merge", "merge")
        page = call(app, "GET", "/api/v1/renders").json()["data"]
        assert (len(page), looks) == (3, {"names": 0, "merge": 1})
        assert call(app, "DELETE", f"/api/v1/renders/{page[0]['id']}").status_code == 200
        assert (looks["names"], len(Home(tmp_path / "home").names())) == (0, 2)


def test_a_client_that_writes_too_often_is_told_when_to_come_back(tmp_path):
    with open_app(tmp_path / "home", limits=Limits(writes=2, writes_per_s=0.01)) as app:
        answers = [call(app, "POST", "/api/v1/renders/x/cancel") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [404, 404, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 100


def test_a_body_that_trickles_is_given_up(tmp_path):
    with open_app(tmp_path / "home", limits=Limits(body_s=0.3)) as app, on_a_port(app) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
            slow.sendall(
                b"POST /api/v1/renders HTTP/1.1\r\nhost: 127.0.0.1\r\n"
                b"content-type: application/json\r\ncontent-length: 100\r\n\r\n{"
            )
            assert slow.recv(1000).startswith(b"HTTP/1.1 408")
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "localhost"), ("::1", "[::1]"), ("[::1]", "[::1]"), ("10.0.0.7", "10.0.0.7")],
)
def test_where_a_server_is_can_be_opened_as_it_is_told(host, url):
    assert run_server.url_of(host, 8500) == f"http://{url}:8500"


def test_a_preset_of_the_server_s_own_is_chosen_and_its_file_not_told(tmp_path):
    (tmp_path / "mine.yaml").write_text("video: {frames: 5}\n")
    app = make_app(tmp_path / "home", preset=str(tmp_path / "mine.yaml"))
    answer = call(app, "GET", "/session")
    app.state.context.queue.close()
    assert answer.json()["preset"] == ""
    assert str(tmp_path) not in answer.text
