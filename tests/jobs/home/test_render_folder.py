"""A render's folder says what is there of it, at any time and to anyone, and gives it back."""

import io
import threading
import time
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from command import SMALL, longreel
from safetensors.torch import save_file

from longreel.configs.schema import OutputConfig
from longreel.jobs.home.home import Home, new_name
from longreel.jobs.home.lock import Taken
from longreel.jobs.home.record import RenderRun
from longreel.jobs.mp4 import decode_mp4
from longreel.jobs.render import plan_render, stream_chunks
from longreel.models.lora import find_adapters
from longreel.pipeline.parts import check_parts
from longreel.pipeline.plan import make_plan

_SIZES = [setting for setting in SMALL if not setting.startswith("video.frames")]
BLOCKS = [*_SIZES, "blocks.policy=dualparal-grouped", "blocks.size=2", "blocks.left=2"]


def plan(*more, frames=33, **request):
    return plan_render("a cat", frames=frames, overrides=[*BLOCKS, *more], **request)


def frames_of(plan):
    with stream_chunks(plan) as chunks:
        return np.concatenate([chunk.frames for chunk in chunks])


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    render = Home(tmp_path_factory.mktemp("home")).create(plan())
    assert render.status().state == "queued"
    assert RenderRun(render).run().state == "done"
    return render


def test_segments_and_their_start_are_one_video_without_a_gap(done):
    segments = done.segments()
    assert [(s.first, s.stop) for s in segments] == [(0, 13), (13, 21), (21, 29), (29, 33)]
    video = done.init.read_bytes() + b"".join(s.path.read_bytes() for s in segments)
    with av.open(io.BytesIO(video)) as container:
        times = [(frame.pts, frame.time) for frame in container.decode(video=0)]
    assert times == [(i, i / 16) for i in range(33)]


def test_what_was_asked_for_when_it_was_let_pass_is_still_made(home):
    """A number that the queue ignores, and quality beside pictures: refused of a request now."""
    request, output = plan().request, OutputConfig(format="png", crf=40)
    blocks = replace(request.config.blocks, window=48)
    with pytest.raises(ValueError, match=r"blocks\.window=48 would be ignored"):
        plan("blocks.window=48")
    config = replace(request.config, blocks=blocks, output=output)
    render = home.create(make_plan(replace(request, config=config)))
    assert RenderRun(home.open(render.id)).run().state == "done"
    frames = np.stack(list(home.open(render.id).frames()))
    assert np.array_equal(frames, frames_of(plan()))


def test_the_finished_file_has_their_frames_and_says_what_it_was_made_from(done, tmp_path):
    done.export(tmp_path / "a.mp4")
    frames = np.stack(list(done.frames()))
    assert np.array_equal(np.stack(list(decode_mp4(tmp_path / "a.mp4"))), frames)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert [frame.pts for frame in container.decode(video=0)] == list(range(33))
        assert container.streams.video[0].duration == 33
        assert container.metadata["prompt"] == "a cat"
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("name", ["no/a.mp4", "a.mov", ""])
def test_where_its_file_cannot_be_written_is_said_by_its_name(done, tmp_path, name):
    """It is all that `longreel download` looks at."""
    with pytest.raises(ValueError, match=f"^output={tmp_path / name} "):
        done.export(tmp_path / name)


def test_pictures_are_made_of_segments_without_loss(home, tmp_path):
    wanted = plan("output.format=png", frames=9)
    render = home.create(wanted)
    RenderRun(render).run()
    assert np.array_equal(np.stack(list(render.frames())), frames_of(wanted))
    render.export(tmp_path / "pictures")
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 9


def test_a_reader_follows_a_render_and_knows_its_end(home):
    render = home.create(plan())
    run = RenderRun(render)
    seen = []

    def read():
        seen.extend(home.open(render.id).follow(timeout_s=60))

    reader = threading.Thread(target=read)
    reader.start()
    run.run()
    reader.join(60)
    assert [s.digest for s in seen] == [s.digest for s in render.segments()]
    assert render.wait(len(seen), timeout_s=1) is None
    with pytest.raises(TimeoutError, match=r"has had no segment 0 for 0\.1 s"):
        home.create(plan()).wait(0, timeout_s=0.1)


def test_a_render_that_was_stopped_goes_on_to_the_same_bytes(home, done):
    render = home.create(plan())
    run = RenderRun(render)
    stopper = threading.Thread(target=lambda: (render.wait(0, timeout_s=60), run.stop()))
    stopper.start()
    status = run.run()
    stopper.join()
    assert (status.state, status.attempt) == ("paused", 1)
    assert RenderRun(home.open(render.id)).run().state == "done"
    assert [s.digest for s in render.segments()] == [s.digest for s in done.segments()]


def test_two_processes_do_not_make_one_render(home):
    render = home.create(plan())
    with render.attempt():
        assert render.status().state == "running"
        with pytest.raises(Taken, match=r"is being made by process \d+ on"):
            RenderRun(home.open(render.id)).run()
        with pytest.raises(Taken, match="is being made"):
            home.remove(render)
    assert (render.status().state, render.status().reason) == ("paused", "its process is gone")
    home.remove(render)
    assert home.renders() == []


def test_a_render_is_opened_by_the_beginning_of_its_id(home):
    first, second = home.create(plan()), home.create(plan())
    assert {render.id for render in home.renders()} == {first.id, second.id}
    assert home.open(first.id).path == first.path
    with pytest.raises(ValueError, match="2 renders begin with it"):
        home.open("2")
    with pytest.raises(ValueError, match="there is no such render"):
        home.open("nothing")


@pytest.mark.parametrize("where", ["here", "a, b", "c@2"])
def test_adapters_are_found_from_any_working_directory(home, tmp_path, monkeypatch, where):
    (tmp_path / where).mkdir()
    monkeypatch.chdir(tmp_path / where)
    write_adapter("a.safetensors")
    write_adapter("b.safetensors")
    adapters = "model.lora=a.safetensors@0.5, ./b.safetensors"
    asked = plan_render("a red circle", preset="shapes", overrides=[adapters])
    render = home.create(asked)
    if "," not in where:  # there the name of the folder cannot be said
        monkeypatch.chdir(tmp_path)
    check_parts(render.plan)
    files = find_adapters(render.plan.config.model.lora, "model.lora")
    assert [(file.path.name, file.scale) for file in files] == [
        ("a.safetensors", 0.5),
        ("b.safetensors", 1.0),
    ]


def test_an_adapter_that_was_moved_is_pointed_at(home, tmp_path):
    """Another one is refused, and the same with another weight."""
    files = [tmp_path / where / "a.safetensors" for where in ("begun", "moved", "other")]
    for number, file in zip((0.1, 0.1, 0.2), files, strict=True):
        file.parent.mkdir()
        write_adapter(file, number)
    begun, moved, other = files
    settings = [f"model.lora={begun}@0.5", "sampling.steps=2", "model.text_cache="]
    asked = plan_render("a red circle", preset="shapes", frames=9, overrides=settings)
    render = home.create(asked, tmp_path / "a.mp4")
    with pytest.raises(ZeroDivisionError):
        RenderRun(render, lambda *what: 1 // 0).run()
    begun.unlink()

    def resume(adapter):
        return longreel("resume", render.id, "--home", home.path, f"model.lora={adapter}")

    with pytest.raises(ValueError, match="the transformer adapter 0 is not the one"):
        RenderRun(render, changes={"model.lora": ""}).run()
    assert f"model.lora={begun}@0.5, with which the frames" in resume(moved).message
    assert "the transformer adapter 0 is not the one" in resume(f"{other}@0.5").message
    assert resume(f"{moved}@.5").code == 0


def write_adapter(path, number=1.0):
    module = "transformer.blocks.0.attn1.to_q"
    halves = {f"{module}.lora_A.weight": torch.full((2, 192), number)}
    halves[f"{module}.lora_B.weight"] = torch.ones(192, 2)
    save_file(halves, path)


def test_ids_sort_by_time_within_a_second_too(monkeypatch):
    seconds = iter([1000.0, 1000.001, 1000.9999, 1001.0])
    monkeypatch.setattr(time, "time", lambda: next(seconds))
    made = [new_name() for _ in range(4)]
    assert made == sorted(made)
    assert len({len(name) for name in made}) == 1
