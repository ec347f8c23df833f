"""Where memory is not enough, the same render goes on with what needs less, and says so."""

import threading
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from ray_cluster import make_plan
from tiny_blocks import shallow

from longreel.jobs.home import measures, record
from longreel.jobs.home.home import Home
from longreel.jobs.home.journal import JournalReader
from longreel.jobs.home.record import RenderRun
from longreel.models.vae import StreamingDecoder
from longreel.pipeline import backend as backends
from longreel.pipeline.codec import Codec

FACTS = {"changes", "block", "prompt", "blocks"}  # of what a render is told
pytestmark = pytest.mark.usefixtures("tiny_archs")
SHALLOW = shallow("dualparal")


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


def changes_of(render):
    events = JournalReader(render.path / "journal").poll()
    return [event["changes"] for event in events if event["event"] == "plan"]


def frames_of(render):
    return np.stack(list(render.frames()))


def told_before(render, home):
    """The same render, which is told at its beginning what the other was told meanwhile."""
    again = home.create(render.plan)
    events = JournalReader(render.path / "journal").poll()
    with again.attempt() as attempt:
        for event in events:
            if event["event"] in ("plan", "prompt", "finishing"):
                attempt.note(event.pop("event"), **{k: event[k] for k in FACTS & {*event}})
    assert RenderRun(home.open(again.id)).run().state == "done"
    return again


def out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory: tried 1 GiB")


def short_of(enough, plan, layers, device, *rest):
    """A stage that has memory for the tasks that are `enough`."""
    stage = make_stage(plan, layers, device, *rest)
    run = stage.run
    stage.run = lambda task, x: run(task, x) if enough(plan, task) else out_of_memory()
    return stage


make_stage = backends.make_stage


def test_fewer_blocks_in_flight_are_tried_before_a_render_is_given_up(home, monkeypatch):
    def enough(plan, task):
        return task.number < 4 or plan.schedule.max_inflight <= 2

    monkeypatch.setattr(backends, "make_stage", partial(short_of, enough))
    plan = make_plan("dualparal", SHALLOW, "checkpoint.every_s=0", frames=33)
    assert plan.schedule.max_inflight > 4
    render = home.create(plan)
    assert RenderRun(render).run().state == "done"
    assert changes_of(render) == [{"max_inflight": plan.schedule.max_inflight // 2}]
    assert len(frames_of(render)) == 33
    monkeypatch.setattr(backends, "make_stage", make_stage)
    again = home.create(plan)  # begun with as few, it is the same render
    with again.attempt() as attempt:
        attempt.change(changes_of(render)[-1], "as before")
    assert RenderRun(home.open(again.id)).run().state == "done"
    assert np.array_equal(frames_of(again), frames_of(render))


def test_tiles_are_decoded_from_where_whole_frames_ended(home, monkeypatch):
    decode, latents = StreamingDecoder.decode, []

    def short(self, latents_BCTHW):
        if self._tiling.out_stride == 0 and len(latents) == 7:
            out_of_memory()
        latents.append(1)
        return decode(self, latents_BCTHW)

    request = ("causal", "checkpoint.every_s=0", "video.width=384")
    plan = make_plan(*request, frames=33)
    truth = home.create(plan)
    RenderRun(truth).run()
    monkeypatch.setattr(StreamingDecoder, "decode", short)
    render = home.create(plan)
    assert RenderRun(render).run().state == "done"
    assert changes_of(render) == [{"model.vae_tile": 256}]
    ours, whole = frames_of(render).astype(int), frames_of(truth).astype(int)
    (first, *_) = [segment.first for segment in render.segments() if segment.first >= 13]
    assert np.array_equal(ours[:first], whole[:first])
    # tiles differ from whole frames, whose pixels attend to each other; but no more than if there
    # had been tiles from the first latent on
    monkeypatch.setattr(StreamingDecoder, "decode", decode)
    tiled = home.create(make_plan(*request, "model.vae_tile=256", frames=33))
    RenderRun(tiled).run()
    always = np.abs(frames_of(tiled) - whole)[first:].mean()
    assert 0 < np.abs(ours - whole)[first:].mean() < 1.2 * always


def test_a_checkpoint_of_more_blocks_in_flight_is_gone_on_from(home, monkeypatch):
    def enough(plan, task):
        return task.number < 14 or plan.schedule.max_inflight <= 2

    monkeypatch.setattr(backends, "make_stage", partial(short_of, enough))
    render = home.create(make_plan("dualparal", SHALLOW, "checkpoint.every_s=0.01", frames=45))
    taken = []
    report = lambda what, done, total, note="": taken.append(done) if what == "denoise" else None  # noqa: E731
    assert RenderRun(render, report).run().state == "done"
    (again,) = (then for now, then in pairwise(taken) if then <= now)
    assert again > 0, "it began anew"
    assert len(frames_of(render)) == 45


def test_what_was_tried_counts_in_later_attempts(home, monkeypatch):
    monkeypatch.setattr(
        backends, "make_stage", partial(short_of, lambda plan, task: plan.schedule.max_inflight < 2)
    )
    render = home.create(make_plan("dualparal", SHALLOW, "checkpoint.every_s=0", frames=33))

    class Killed(BaseException):
        pass

    def report(what, done, total, note=""):
        if (what, done) == ("denoise", 6):
            raise Killed

    with pytest.raises(Killed):
        RenderRun(render, report).run()
    tried = changes_of(render)
    assert tried[-1] == {"max_inflight": 1}
    assert RenderRun(home.open(render.id)).run().state == "done"
    assert changes_of(render) == tried


@pytest.mark.parametrize("what", ["prompt", "finish"])
def test_what_is_told_before_the_next_attempt_begins_is_heard_by_that(home, monkeypatch, what):
    def enough(plan, task):
        return task.number < 4 or plan.schedule.max_inflight <= 2

    def next_measure(plan, *, decoding):
        threads.append(threading.Thread(target=tell, daemon=True))
        threads[0].start()
        threads[0].join(0.5)  # it waits: nobody else would hear it
        return measures.next_measure(plan, decoding=decoding)

    def tell():
        run.finish() if what == "finish" else run.set_prompt("a dog")
        told.append(what)

    threads, told = [], []
    monkeypatch.setattr(record, "next_measure", next_measure)
    monkeypatch.setattr(backends, "make_stage", partial(short_of, enough))
    render = home.create(make_plan("dualparal", SHALLOW, "checkpoint.every_s=0", frames=65))
    run = RenderRun(render)
    assert run.run().state == "done"
    threads[0].join(60)
    assert told == [what]
    assert what == "prompt" or 0 < len(frames_of(render)) < 65
    assert np.array_equal(frames_of(render), frames_of(told_before(render, home)))
    with pytest.raises(ValueError, match="is over"):  # and nobody is waited for
        run.finish()


def test_what_is_told_while_memory_runs_out_counts_in_what_goes_on(home, monkeypatch):
    """The new prompt is read while the chain that it was to go to fails."""
    reads, has_read, texts, thread = threading.Event(), threading.Event(), Codec.texts, []

    def slow(self, prompts):
        if prompts == ["a dog"]:
            reads.set()
            assert has_read.wait(60)
        return texts(self, prompts)

    def enough(plan, task):
        if task.number < 4 or plan.schedule.max_inflight <= 2:
            return True
        thread.append(threading.Thread(target=run.set_prompt, args=["a dog"], daemon=True))
        thread[0].start()
        assert reads.wait(60)
        threading.Timer(1.0, has_read.set).start()  # when the next has begun, if it did not wait
        return False

    monkeypatch.setattr(Codec, "texts", slow)
    monkeypatch.setattr(backends, "make_stage", partial(short_of, enough))
    render = home.create(make_plan("dualparal", SHALLOW, "checkpoint.every_s=0", frames=33))
    run = RenderRun(render)
    assert run.run().state == "done"
    thread[0].join(60)
    events = JournalReader(render.path / "journal").poll()
    assert [event["prompt"] for event in events if event["event"] == "prompt"] == ["a dog"]
    assert np.array_equal(frames_of(render), frames_of(told_before(render, home)))
