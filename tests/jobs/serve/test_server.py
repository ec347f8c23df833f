"""A real server over HTTP: what goes in comes out, in every way, with the same frames."""

import contextlib
import io
import json
import struct

import av
import numpy as np
import pytest
from app import call
from server import SMALL, asked, ended, until
from websockets.sync.client import connect

from longreel.jobs.home.home import Home
from longreel.jobs.home.record import RenderRun
from longreel.jobs.mp4 import decode_mp4
from longreel.jobs.render import plan_render
from longreel.jobs.serve.app import make_app


@pytest.fixture(scope="module")
def done(http):
    """A render of six segments, and its video as it grew."""
    made = http.post("/api/v1/renders", json=asked(frames=41, seed=3))
    assert made.status_code == 201, made.text
    render = made.json()["id"]
    grown = http.get(f"/api/v1/renders/{render}/video")
    assert grown.status_code == 200
    seen = ended(http, render)
    assert seen["status"] == "done", seen
    return render, grown.content


def decode(data: bytes):
    """With PyAV alone."""
    with av.open(io.BytesIO(data)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def read_frames(data: bytes):
    numbers, frames = [], []
    while data:
        length, number = struct.unpack(">IQ", data[:12])
        numbers.append(number)
        frames.append(np.frombuffer(data[12 : 4 + length], np.uint8).reshape(32, 48, 3))
        data = data[4 + length :]
    return numbers, np.stack(frames)


def events_of(text: str):
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line[0] != ":")
        if fields:
            number = int(fields["id"]) if "id" in fields else None
            found.append((fields["event"], number, json.loads(fields["data"])))
    return found


def test_the_video_that_grew_is_the_one_that_is_there_afterwards(http, done):
    render, grown = done
    again = http.get(f"/api/v1/renders/{render}/video")
    assert again.content == grown
    assert again.headers["content-length"] == str(len(grown))
    assert len(decode(grown)) == 41


def test_the_growing_video_opens_at_any_moment_of_the_render(http):
    made = http.post("/api/v1/renders", json=asked(frames=161)).json()
    data, counts = b"", []
    with http.stream("GET", made["links"]["video"]) as growing:
        for piece in growing.iter_raw():
            data += piece
            if len(counts) < 3 and len(data) > 30_000 * (len(counts) + 1):
                assert http.get(f"/api/v1/renders/{made['id']}").json()["status"] == "running"
                counts.append(len(decode(data)))
    assert 0 < counts[0] < counts[1] < counts[2] < 161
    assert len(decode(data)) == 161


def test_it_is_the_video_that_a_render_in_process_makes(done, tmp_path):
    _, grown = done
    overrides = [f"{key}={value}" for key, value in SMALL.items()]
    plan = plan_render("a red circle", preset="tiny", frames=41, seed=3, overrides=overrides)
    render = Home(tmp_path).create(plan)
    RenderRun(render).run()
    parts = [render.init, *(segment.path for segment in render.segments())]
    assert grown == b"".join(part.read_bytes() for part in parts)


def test_a_finished_video_comes_by_ranges(http, done):
    render, grown = done
    path = f"/api/v1/renders/{render}/video"
    for asked_for, want in [
        ("bytes=0-9", grown[:10]),
        ("bytes=1000-", grown[1000:]),
        ("bytes=-77", grown[-77:]),
        ("bytes=5-99999999", grown[5:]),
    ]:
        part = http.get(path, headers={"range": asked_for})
        assert part.status_code == 206
        assert part.content == want
    assert part.headers["content-range"] == f"bytes 5-{len(grown) - 1}/{len(grown)}"
    beyond = http.get(path, headers={"range": f"bytes={len(grown)}-"})
    assert beyond.status_code == 416
    assert http.get(path, headers={"if-none-match": part.headers["etag"]}).status_code == 304


def test_hls_gives_the_same_bytes(http, done):
    render, grown = done
    base = f"/api/v1/renders/{render}/hls/"
    lines = http.get(base + "index.m3u8").text.splitlines()
    assert lines[0] == "#EXTM3U"
    assert lines[-1] == "#EXT-X-ENDLIST"
    assert '#EXT-X-MAP:URI="init.mp4"' in lines
    names = [line for line in lines if not line.startswith("#")]
    seconds = [float(line[8:-1]) for line in lines if line.startswith("#EXTINF:")]
    assert sum(seconds) == pytest.approx(41 / 8)
    (target,) = [int(line.split(":")[1]) for line in lines if "TARGETDURATION" in line]
    assert max(seconds) <= target
    parts = [http.get(base + name).content for name in ["init.mp4", *names]]
    assert b"".join(parts) == grown
    assert http.get(base + "99.m4s").status_code == 404


def test_raw_frames_are_those_of_the_file_from_any_number(http, done, tmp_path):
    render, grown = done
    (tmp_path / "grown.mp4").write_bytes(grown)
    kept = np.stack([*decode_mp4(tmp_path / "grown.mp4")])
    for start in (0, 1, 20, 40):
        answer = http.get(f"/api/v1/renders/{render}/frames", params={"start": start})
        numbers, frames = read_frames(answer.content)
        assert numbers == list(range(start, 41))
        assert np.array_equal(frames, kept[start:])
    assert answer.headers["x-longreel-height"] == "32"
    assert http.get(f"/api/v1/renders/{render}/frames", params={"start": 41}).content == b""


def test_events_tell_everything_once_and_go_on_where_a_reader_was(http, done):
    render, _ = done
    path = f"/api/v1/renders/{render}/events"
    every = [e for e in events_of(http.get(path).text) if e[1] is not None]
    names = [name for name, _, _ in every]
    assert names[0] == "admitted"
    assert names[-1] == "done"
    assert names.count("segment") == len(
        [1 for name, _, data in every if name == "segment" and data["frames"]]
    )
    assert sum(data["frames"] for name, _, data in every if name == "segment") == 41
    numbers = [number for _, number, _ in every]
    assert numbers[:-1] == list(range(1, len(numbers)))
    later = events_of(http.get(path, headers={"last-event-id": "3"}).text)
    assert later == every[3:]
    told = json.dumps(every)
    assert "host" not in told
    assert "/" not in told.replace(render, "")


def test_a_thumbnail_is_a_frame_of_it(http, done):
    from PIL import Image

    render, _ = done
    answer = http.get(f"/api/v1/renders/{render}/thumbnail", params={"frame": 40})
    assert answer.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(answer.content)).size == (48, 32)
    missing = http.get(f"/api/v1/renders/{render}/thumbnail", params={"frame": 41})
    assert missing.status_code == 404


def test_a_socket_gives_segments_from_any_number(server, done):
    render, grown = done
    url = server.url.replace("http", "ws") + f"/api/v1/renders/{render}/stream"

    def read(start):
        parts, told = [], []
        with connect(f"{url}?from={start}") as socket:
            while (said := json.loads(socket.recv(timeout=60)))["type"] != "end":
                told.append(said)
                parts.append(socket.recv(timeout=60))
                assert len(parts[-1]) == said["bytes"]
        assert said["status"] == "done"
        return told, parts

    _, parts = read(0)
    assert b"".join(parts) == grown
    later, rest = read(2)
    assert later[0]["type"] == "init"
    assert [said["number"] for said in later[1:]] == list(range(2, len(parts) - 1))
    assert rest == [parts[0], *parts[3:]]


def test_a_running_render_is_steered_and_cancelled(http, server):
    made = http.post("/api/v1/renders", json=asked(frames=2001)).json()
    path = f"/api/v1/renders/{made['id']}"
    until(lambda: http.get(path).json(), lambda seen: seen["progress"]["frames"] > 0)
    changed = http.post(f"{path}/prompt", json={"prompt": "a blue square"})
    assert changed.status_code == 200, changed.text
    refused = http.post(f"{path}/prompt", json={"prompt": "a\0b"})
    assert refused.status_code == 409
    assert "holds a NUL character" in refused.json()["error"]["message"]
    assert http.delete(path).status_code == 409
    assert http.post(f"{path}/cancel").status_code == 200
    seen = ended(http, made["id"])
    assert seen["status"] == "cancelled"
    assert len(decode(http.get(f"{path}/video").content)) == seen["progress"]["frames"]
    assert http.post(f"{path}/cancel").status_code == 200
    assert http.post(f"{path}/pause").status_code == 409
    assert http.post(f"{path}/prompt", json={"prompt": "no"}).status_code == 409
    assert http.delete(path).status_code == 200
    assert http.get(path).status_code == 404
    assert not (server.home / "renders" / made["id"]).exists()


def test_a_paused_render_goes_on_and_loses_nothing(http):
    made = http.post("/api/v1/renders", json=asked(frames=121)).json()
    path = f"/api/v1/renders/{made['id']}"
    until(lambda: http.get(path).json(), lambda seen: seen["progress"]["frames"] > 0)
    http.post(f"{path}/pause")
    paused = until(lambda: http.get(path).json(), lambda seen: seen["status"] != "running")
    assert paused["status"] == "paused"
    assert paused["progress"]["frames"] < 121
    assert http.post(f"{path}/resume").json()["status"] in ("queued", "running")
    assert ended(http, made["id"])["status"] == "done"
    assert len(decode(http.get(f"{path}/video").content)) == 121


def test_a_status_has_a_tag_that_changes_with_it_at_once(http, done):
    path = f"/api/v1/renders/{done[0]}"
    first = http.get(path)
    assert first.json()["progress"]["frames"] == 41
    again = http.get(path, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    made = http.post("/api/v1/renders", json=asked(frames=2001)).json()
    path = f"/api/v1/renders/{made['id']}"
    running = until(lambda: http.get(path), lambda seen: seen.json()["status"] == "running")
    assert http.post(f"{path}/cancel").status_code == 200
    until(lambda: http.get(path).json()["status"], lambda status: status == "cancelled")
    over = http.get(path, headers={"if-none-match": running.headers["etag"]})
    assert (over.status_code, over.json()["status"]) == (200, "cancelled")


def test_the_same_key_gives_the_same_render(http):
    headers = {"idempotency-key": "once"}
    body = asked(frames=1)
    first = http.post("/api/v1/renders", json=body, headers=headers)
    again = http.post("/api/v1/renders", json=body, headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    other = http.post("/api/v1/renders", json=asked(frames=5), headers=headers)
    assert other.status_code == 409
    assert other.json()["error"]["code"] == "idempotency_key_reused"


def test_a_render_past_its_deadline_ends_as_failed(http):
    for deadline_s in (1.5, 6.0, 24.0):  # it may pass in the queue where the machine is slow
        made = http.post("/api/v1/renders", json=asked(frames=4001, deadline_s=deadline_s)).json()
        seen = ended(http, made["id"])
        assert seen["status"] == "failed"
        assert seen["error"]["code"] == "deadline"
        if seen["started_at"] is not None:
            break
    assert seen["started_at"] is not None


def test_a_list_comes_in_pages(http, done):
    found, after = [], None
    while True:
        params = {"limit": 2, "order": "asc"} | ({"after": after} if after else {})
        page = http.get("/api/v1/renders", params=params).json()
        found += [one["id"] for one in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert len(found) == len(set(found))
    assert done[0] in found
    newest = http.get("/api/v1/renders", params={"limit": 100}).json()["data"]
    assert [one["id"] for one in newest] == found[::-1]


def test_metrics_count_what_was_made(http, done):
    text = http.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    assert float(values["longreel_frames_total"]) >= 41
    assert float(values['longreel_renders_ended_total{state="done"}']) >= 1
    assert float(values['longreel_sent_bytes_total{way="video"}']) >= len(done[1])
    assert float(values["longreel_first_frame_seconds_count"]) >= 1


def test_what_a_request_asks_for_goes_over_what_the_server_has_for_all(tmp_path):
    app = make_app(tmp_path, preset="tiny", overrides=["model.text_cache=", "video.frames=33"])
    with contextlib.closing(app.state.context.queue):
        for more, frames in (
            ({"frames": 9}, 9),
            ({"seconds": 1.0}, 9),
            ({"settings": {"video.frames": 5}}, 5),
            ({}, 33),
        ):
            answer = call(app, "POST", "/api/v1/renders", json=asked(**{"frames": None, **more}))
            assert (answer.status_code, answer.json()["frames"]) == (201, frames)
        twice = asked(frames=9, settings={"video.frames": 5})
        assert call(app, "POST", "/api/v1/renders", json=twice).json()["error"]["param"] == "frames"
