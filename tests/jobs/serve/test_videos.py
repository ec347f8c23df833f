"""/v1/videos with the `openai` client itself: every method that it has for videos."""

import contextlib
import io
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import av
import httpx
import openai
import pytest
from app import call, on_a_port, open_app
from openai import OpenAI
from openai.types import Video
from PIL import Image
from server import until

from longreel.jobs.serve.app import make_app

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the service it was for

EXTRA = {"fps": 8, "num_inference_steps": 2, "num_frames": 17}


@pytest.fixture(scope="module")
def videos(server):
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client.videos


@pytest.fixture(scope="module")
def done(videos):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return videos.create_and_poll(
            prompt="a red circle", model="tiny", size="48x32", extra_body=EXTRA
        )


def frames_in(data: bytes) -> int:
    with av.open(io.BytesIO(data)) as file:
        return sum(1 for _ in file.decode(video=0))


def test_create_and_poll_gives_a_completed_video(done):
    assert done.status == "completed"
    assert (done.object, done.model, done.size, done.prompt) == (
        "video",
        "tiny",
        "48x32",
        "a red circle",
    )
    assert done.progress == 100
    assert float(done.seconds) == 17 / 8
    assert done.completed_at >= done.created_at
    assert done.error is None


def test_seconds_and_size_as_the_client_sends_them(videos):
    video = videos.create(prompt="a blue square", seconds="1", size="48x32", extra_body={"fps": 8})
    assert video.status in ("queued", "in_progress")
    assert video.seconds == "1.125"  # the nearest that whole latents make: 9 frames
    assert videos.poll(video.id).status == "completed"
    assert frames_in(videos.download_content(video.id).read()) == 9


def test_json_is_taken_as_well(videos):
    video = videos.create(
        prompt="a red circle",
        extra_body={"num_frames": 1},
        extra_headers={"Content-Type": "application/json"},
    )
    assert videos.poll(video.id).status == "completed"


def test_progress_is_real_and_never_falls(videos):
    body = EXTRA | {"num_frames": 161}
    video = videos.create(prompt="a red circle", size="48x32", extra_body=body)
    seen = []

    def look():
        response = videos.with_raw_response.retrieve(video.id)
        assert 200 <= int(response.headers["openai-poll-after-ms"]) <= 5000
        now = response.parse()
        seen.append(now.progress)
        return now

    assert until(look, lambda now: now.status not in ("queued", "in_progress")).progress == 100
    assert seen == sorted(seen)
    assert len(set(seen)) > 3, seen


def test_content_comes_in_its_variants(videos, done):
    whole = videos.download_content(done.id).read()
    assert frames_in(whole) == 17
    with videos.with_streaming_response.download_content(done.id) as response:
        assert b"".join(response.iter_bytes()) == whole
    thumbnail = Image.open(io.BytesIO(videos.download_content(done.id, variant="thumbnail").read()))
    assert (thumbnail.format, thumbnail.size) == ("WEBP", (48, 32))
    sheet = Image.open(io.BytesIO(videos.download_content(done.id, variant="spritesheet").read()))
    assert (sheet.format, sheet.size) == ("JPEG", (4 * 48, 4 * 32))


def test_a_list_is_paged_by_the_client(videos, done):
    found = [video.id for video in videos.list(limit=2)]
    assert done.id in found
    assert len(found) == len(set(found)) >= 4
    assert [video.id for video in videos.list(limit=2, order="asc")] == found[::-1]


def test_a_remix_is_the_same_with_another_prompt(videos, done):
    remix = videos.remix(done.id, prompt="a green triangle")
    assert remix.remixed_from_video_id == done.id
    assert (remix.prompt, remix.size, remix.seconds) == ("a green triangle", "48x32", done.seconds)
    assert videos.poll(remix.id).status == "completed"
    assert videos.download_content(remix.id).read() != videos.download_content(done.id).read()


def test_an_edit_takes_the_video_itself_or_its_id(videos, done):
    whole = videos.download_content(done.id).read()
    edit = videos.edit(prompt="a green triangle", video=("mine.mp4", whole))
    assert edit.remixed_from_video_id == done.id
    body = {"prompt": "a green triangle", "video": {"id": done.id}}
    again = videos._client.post("/videos/edits", body=body, cast_to=Video)  # as for an id it must
    assert again.remixed_from_video_id == done.id
    assert again.id != edit.id
    with pytest.raises(openai.UnprocessableEntityError, match="made here"):
        videos.edit(prompt="x", video=("other.mp4", b"no video of ours"))


def test_an_extension_is_another_video_that_begins_with_the_whole_of_the_first(videos, done):
    whole = videos.download_content(done.id).read()
    longer = videos.extend(prompt="a green triangle", seconds="4", video=("mine.mp4", whole))
    assert (longer.remixed_from_video_id, longer.prompt) == (done.id, "a green triangle")
    assert float(longer.seconds) == pytest.approx(float(done.seconds) + 4, abs=0.5)
    assert videos.poll(longer.id).status == "completed"
    both = videos.download_content(longer.id).read()
    assert both.startswith(whole)
    assert frames_in(both) > frames_in(whole)
    assert videos.download_content(done.id).read() == whole
    body = {"prompt": "a green triangle", "seconds": 1, "video": {"id": done.id}}
    again = videos._client.post("/videos/extensions", body=body, cast_to=Video)
    assert videos.poll(again.id).status == "completed"
    with pytest.raises(openai.UnprocessableEntityError, match="made here"):
        videos.extend(prompt="x", seconds="4", video=("other.mp4", b"no video of ours"))


def test_characters_are_said_not_to_be_there(videos):
    with pytest.raises(openai.BadRequestError, match="no characters"):
        videos.create_character(name="anna", video=("a.mp4", b"x"))
    with pytest.raises(openai.NotFoundError):
        videos.get_character("anna")


def test_a_video_is_deleted_even_while_it_is_made(videos):
    body = EXTRA | {"num_frames": 2001}
    video = videos.create(prompt="a red circle", size="48x32", extra_body=body)
    until(lambda: videos.retrieve(video.id), lambda now: now.status == "in_progress")
    gone = videos.delete(video.id)
    assert (gone.id, gone.object, gone.deleted) == (video.id, "video.deleted", True)
    with pytest.raises(openai.NotFoundError):
        videos.retrieve(video.id)


def test_a_cancelled_video_has_failed_with_that_word(videos, http):
    body = EXTRA | {"num_frames": 2001}
    video = videos.create(prompt="a red circle", size="48x32", extra_body=body)
    http.post(f"/api/v1/renders/{video.id}/cancel")
    ended = videos.poll(video.id)
    assert ended.status == "failed"
    assert ended.error.code == "cancelled"


@pytest.mark.parametrize(
    ("request_", "field", "word"),
    [
        ({"prompt": " "}, "prompt", "pattern"),
        ({"prompt": "x", "model": "sora-2"}, "model", "opens no file for a client; give one of"),
        ({"prompt": "x", "size": "1x1"}, "size", "pattern"),
        ({"prompt": "x", "size": "50x50"}, "video.height", "grid"),
        ({"prompt": "x", "seconds": "soon"}, "seconds", "number"),
        ({"prompt": "x", "extra_body": {"shots": "[]"}}, "shots", "xtra"),
    ],
)
def test_errors_come_in_the_envelope_that_the_client_reads(videos, request_, field, word):
    with pytest.raises(openai.UnprocessableEntityError) as error:
        videos.create(**request_)
    assert word in error.value.message
    assert error.value.type == "invalid_request_error"
    assert error.value.param == field


def test_what_the_client_sends_again_by_itself_makes_one_video(tmp_path):
    """It has no idempotency keys: a retry says only that it is one."""
    form = {"prompt": (None, "a red circle"), "size": (None, "48x32"), "num_frames": (None, "1")}
    with open_app(tmp_path / "home") as app:
        first = call(app, "POST", "/v1/videos", files=form).json()["id"]
        again = call(
            app, "POST", "/v1/videos", files=form, headers={"x-stainless-retry-count": "1"}
        )
        assert again.json()["id"] == first
        other = call(
            app, "POST", "/v1/videos", files=form, headers={"x-stainless-retry-count": "0"}
        )
        assert other.json()["id"] != first


def test_a_video_that_two_delete_at_once_is_gone_for_both(tmp_path):
    form = {"prompt": (None, "a red circle"), "size": (None, "48x32"), "num_frames": (None, "1")}
    with open_app(tmp_path / "home") as app, on_a_port(app) as url:
        here = app.state.context
        video = call(app, "POST", "/v1/videos", files=form).json()["id"]
        here.queue.take_next(1, time.time())
        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(httpx.delete, f"{url}/v1/videos/{video}") for _ in range(2)]
            until(lambda: here.queue.get(video).wish, lambda wish: wish == "cancel")
            here.queue.end(video, "cancelled", time.time())
            answers = sorted(one.result().status_code for one in both)
    assert answers in ([200, 200], [200, 404])


def test_a_remix_is_of_the_server_s_own_preset_where_that_is_a_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("preset: tiny\nvideo: {height: 32, width: 48, frames: 1}\n")
    app = make_app(tmp_path / "home", preset=str(tmp_path / "mine.yaml"))
    with contextlib.closing(app.state.context.queue):
        first = call(app, "POST", "/v1/videos", json={"prompt": "a red circle"}).json()
        again = {"prompt": "a blue square"}
        remix = call(app, "POST", f"/v1/videos/{first['id']}/remix", json=again).json()
        named = call(app, "POST", "/v1/videos", json={"prompt": "x", "model": "tiny"}).json()
    assert (first["model"], first["size"]) == (remix["model"], remix["size"]) == ("", "48x32")
    assert (named["model"], named["size"]) == ("tiny", "96x64")
