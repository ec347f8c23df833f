"""A real server over HTTP: what goes in comes out, in every way, with the same frames."""

import io

import av
import httpx
import numpy as np
import pytest
from server import asked, ended, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server") / "home") as server:
        yield server


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server.url, timeout=120) as http:
        yield http


def decode(data: bytes):
    with av.open(io.BytesIO(data)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def test_a_render_goes_in_and_its_growing_video_comes_out(http):
    made = http.post("/api/v1/renders", json=asked())
    assert made.status_code == 201, made.text
    render = made.json()["id"]
    video = http.get(f"/api/v1/renders/{render}/video")
    assert video.status_code == 200
    assert len(decode(video.content)) == 17
    seen = ended(http, render)
    assert seen["status"] == "done", seen
    assert seen["progress"]["fraction"] == 1
    again = http.get(f"/api/v1/renders/{render}/video")
    assert again.content == video.content
