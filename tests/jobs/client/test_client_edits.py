"""A render of a server that is done is extended and redone by its client."""

import httpx
import numpy as np
import pytest
from server import SMALL, asked

import longreel
from longreel.jobs.client.errors import RenderFailed, ServerError
from longreel.jobs.mp4 import decode_mp4


def test_a_render_that_is_done_is_extended_and_redone(server, tmp_path):
    with longreel.Client(server.url) as client:
        render = client.render("a red circle", frames=33, seed=3, settings=SMALL)
        render.wait(timeout_s=180)
        old = np.concatenate([*render.frames()])
        render.extend(seconds=1, prompt="a blue square", prompt_at=[(4.7, "a green triangle")])
        assert (render.info.status in ("queued", "running"), render.info.frames) == (True, 41)
        assert render.wait(timeout_s=180).frames_done == 41
        longer = np.stack([*decode_mp4(render.download(tmp_path / "longer.mp4"))])
        assert np.array_equal(longer[:33], old)
        assert len(longer) == 41
        render.redo(16, 18)
        info = render.wait(timeout_s=180)
        assert (info.frames, info.frames_done, info.fraction) == (41, 41, 1.0)
        redone = np.stack([*decode_mp4(render.download(tmp_path / "redone.mp4"))])
        differs = (redone != longer).any(axis=(1, 2, 3))
        assert differs[16:18].all()
        assert not differs[:9].any()
        assert not differs[33:].any()
        told = [event.name for event in render.events()]
        assert [name for name in told if name in ("edit", "made")] == [
            "made", "edit", "made", "edit", "made",
        ]  # fmt: skip
        for ask, said in [
            (lambda: render.extend(6), "use 4 or 8"),
            (lambda: render.extend(), "give one of them"),
            (lambda: render.extend(10_000_000), "more than the 57601"),
            (lambda: render.redo(9, 9), "holds no frame"),
            (lambda: render.redo(0, 99), "is not inside render"),
        ]:
            with pytest.raises(ServerError, match=said):
                ask()
        assert render.refresh().status == "done"
        render.extend(400)
        render.cancel()
        with pytest.raises(RenderFailed, match="cancelled"):
            render.wait(timeout_s=180)
        render.drop()
        assert (render.info.status, render.info.frames) == ("done", 41)
        with pytest.raises(ServerError, match="nothing to drop"):
            render.drop()


def test_a_render_that_is_not_done_is_not_edited(server):
    with httpx.Client(base_url=server.url, timeout=60) as http:
        render = http.post("/api/v1/renders", json=asked(frames=401)).json()["id"]
        refused = http.post(f"/api/v1/renders/{render}/extend", json={"frames": 8})
        http.post(f"/api/v1/renders/{render}/cancel")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "not_done")
