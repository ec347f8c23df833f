"""Prompts that change within a video, by plan and live, and videos without an end."""

import pickle
import time
from contextlib import closing
from functools import partial

import pytest
import torch
from thread_chain import ThreadBackend
from tiny_blocks import POLICIES, overrides, shallow

from longreel.jobs.render import plan_render, render_file, render_latents, stream_chunks
from longreel.parallel.snapshot import EMPTY, Snapshot
from longreel.pipeline.backend import LocalBackend, open_backend
from longreel.pipeline.generator import Generator

FRAMES = 57  # 15 latents: five blocks of three


pytestmark = pytest.mark.usefixtures("tiny_archs")


def plan(policy, *more, frames=FRAMES, **request):
    settings = overrides(policy, shallow(policy), *more, steps=3)
    return plan_render("a cat", frames=frames, seed=3, overrides=settings, **request)


def blocks_that_changed(policy, second):
    before = render_latents(plan(policy))
    after = render_latents(plan(policy, prompt_at=[(second, "a dog")]))
    pairs = zip(torch.split(before, 3, dim=2), torch.split(after, 3, dim=2), strict=True)
    return [i for i, (a, b) in enumerate(pairs) if not torch.equal(a, b)]


def test_a_change_leaves_blocks_alone_that_share_no_window_with_it():
    # second 1.6 is frame 26, latent 7, block 2; context is one block to each side
    assert blocks_that_changed("causal", 1.6) == [2, 3, 4]
    changed = blocks_that_changed("dualparal", 1.6)
    assert changed[-3:] == [2, 3, 4]
    assert blocks_that_changed("dualparal-grouped-pairs", 2.1) == [3, 4]  # the second burst


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([(100.0, "a dog")], r"prompt_at=100 is after the last of 57 frames"),
        ([(-1.0, "a dog")], r"prompt_at=-1.0 is no time in the video"),
        ([(float("nan"), "a dog")], r"prompt_at=nan is no time"),
        ([(1.0, " ")], r"prompt_at=1 has an empty prompt"),
        ([(0.1, "a dog")], r"prompt_at=0.1 falls into the first block.*0\.5[0-9] s or later"),
        ([(1.6, "a dog"), (1.7, "a bird")], r"prompt_at=1.7 falls into block 2, as another"),
        ([(0.0, "a dog"), (0.0, "a bird")], r"prompt_at=0 falls into block 0, as another"),
    ],
)
def test_a_change_that_cannot_be_seen_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plan("dualparal", prompt_at=changes)


def test_a_video_of_one_window_has_no_later_time_for_another_prompt():
    with pytest.raises(ValueError, match=r"the first block.*; choose more frames, or a policy"):
        plan_render("a cat", preset="tiny", frames=81, prompt_at=[(2.5, "a dog")])


def test_a_live_change_equals_a_planned_one():
    """Said after the first chunk, it is for the first block that has not begun by then."""
    stream = stream_chunks(plan("causal"))
    first = next(stream)
    stream.set_prompt("a dog")
    chunks = [first, *stream]
    assert sum(len(chunk.frames) for chunk in chunks) == FRAMES
    latents = torch.cat([*{chunk.block: chunk.latents_BCTHW for chunk in chunks}.values()], dim=2)

    def planned(second):
        return render_latents(plan("causal", prompt_at=[(second, "a dog")]))

    # at most one finished block waits while another is being made
    starts = (9 / 16, 21 / 16, 33 / 16, 45 / 16)
    assert any(torch.equal(latents, planned(second)) for second in starts)


@pytest.mark.parametrize("policy", ["causal", "dualparal", "dualparal-grouped-pairs", "buffer"])
def test_an_endless_video_ends_when_it_is_stopped(policy):
    with stream_chunks(plan(policy, frames=0)) as stream:
        seen = [next(stream) for _ in range(4)]
        stream.stop()
        seen += list(stream)
    starts = [chunk.start for chunk in seen]
    assert starts == [0, *range(1, 1 + 4 * (len(seen) - 1), 4)]
    assert len(seen) % 3 == 0 or policy == "buffer"  # whole blocks


@pytest.mark.parametrize("policy", POLICIES)
def test_a_change_is_never_for_a_block_that_has_begun(policy):
    """Also within a burst, whose blocks begin the newest first."""
    ours = plan(policy, frames=33)
    backend = LocalBackend(ours)
    sampling = Generator(ours).sampling(backend)
    chain, begun = backend.chain(sampling), 0
    with closing(chain.run(ours.schedule)) as done:
        for one in done:
            begun = max(begun, *(part.block + 1 for part in one.task.written), 0)
            assert chain.change_text(sampling.text(0)) >= begun


@pytest.mark.parametrize("policy", ["causal-recache", "dualparal", "forcing"])
def test_prompts_that_no_block_reads_any_more_are_let_go(policy):
    """A video without an end may have any number of them; those that are read stay as they are."""
    ours = plan(policy, frames=0)
    backend = LocalBackend(ours)
    told, held = Generator(ours).sampling(backend), []
    planned = Generator(ours).sampling(backend)
    text_BSD = planned.text(0)

    def latents(sampling, hear):
        chain = backend.chain(sampling)
        with closing(chain.run(ours.schedule, limit=16)) as done:
            for one in done:
                yield from (moved.latents_BCTHW for moved in one.finished)
                if one.finished:
                    hear(chain)

    def change(chain):
        nonlocal text_BSD
        text_BSD = text_BSD + 0.125
        planned.texts[chain.change_text(text_BSD)] = text_BSD
        held.append(len(chain._windows.sampling.texts))

    live = list(latents(told, change))
    assert max(held) < 10 < len(planned.texts)
    again = latents(planned, lambda chain: None)
    assert all(torch.equal(*pair) for pair in zip(live, again, strict=True))


@pytest.mark.parametrize("policy", ["causal-recache", "dualparal", "forcing", "rolling"])
def test_what_is_told_is_kept_as_long_as_a_snapshot_needs_it(policy):
    ours = plan(policy, frames=0)
    backend = LocalBackend(ours)
    kept = Generator(ours).sampling(backend)  # for the windows that go on from there
    chain, text_BSD = backend.chain(kept), kept.text(0)
    snapshots, blocks = [EMPTY], {}
    with closing(chain.run(ours.schedule, limit=16, wanted=bool)) as done:
        for one in done:
            if isinstance(one, Snapshot):
                snapshots.append(one)
                continue
            blocks |= {moved.block: moved.latents_BCTHW for moved in one.finished}
            if one.finished:
                text_BSD = text_BSD + 0.125
                oldest = snapshots[-2:][0].walk.oldest_prompt
                kept.remember(chain.change_text(text_BSD), text_BSD, oldest)
    assert len(kept.texts) < 10
    start, again = snapshots[-2], backend.chain(kept)
    for one in again.run(ours.schedule, start, limit=16):
        for moved in one.finished:
            assert torch.equal(moved.latents_BCTHW, blocks[moved.block])


def test_what_goes_to_actors_holds_every_prompt_once():
    """A view of many embedded prompts would take all of them along."""
    ours = plan("causal", frames=33, prompt_at=[(0.6, "a dog"), (1.4, "a bird")])
    sampling = Generator(ours).sampling(LocalBackend(ours))
    text_BSD = torch.stack([*sampling.texts.values()])
    sent = len(pickle.dumps(sampling)) - len(pickle.dumps(sampling.without_texts()))
    assert text_BSD.nbytes <= sent < text_BSD.nbytes + 3000


@pytest.mark.parametrize("backend", [open_backend, ThreadBackend])
@pytest.mark.parametrize("tell", [Generator.stop, partial(Generator.set_prompt, prompt="a dog")])
def test_what_is_made_once_more_is_as_it_was_told_before(tell, backend):
    generator = Generator(plan("causal", frames=0), open_backend=backend, seen=5)
    with closing(generator.chunks()) as chunks:
        next(chunks)
        assert tell(generator) == 5


def test_a_report_of_loading_cannot_tell_the_render_that_waits_for_it():
    told = []

    def report(what, done, total, note=""):
        if what == "prompt" and not done:
            with pytest.raises(ValueError, match="would wait for itself"):
                generator.stop()
            told.append(what)

    generator = Generator(plan("causal"), report)
    with closing(generator.chunks()) as chunks:
        next(chunks)
    assert told == ["prompt"]


def test_an_endless_video_begins_like_one_with_an_end():
    finite = [chunk.frames for chunk in stream_chunks(plan("causal", frames=33))]
    with stream_chunks(plan("causal", frames=0)) as endless:
        for frames in finite[:6]:
            assert (next(endless).frames == frames).all()


def test_what_is_complete_at_the_end_needs_one(tmp_path):
    for ask in (render_latents, lambda p: render_file(p, tmp_path / "a.mp4")):
        with pytest.raises(ValueError, match=r"video.frames=0 never ends.*longreel.stream"):
            ask(plan("causal", frames=0))
    with pytest.raises(ValueError, match=r"blocks.policy=whole has no end to wait for"):
        plan("whole", frames=0)
    assert not list(tmp_path.iterdir())


def test_a_stream_that_nobody_reads_stands_still():
    generator = Generator(plan("causal", frames=0))
    chunks = generator.chunks()
    next(chunks)
    windows = generator._chain._windows  # of the local chain
    admitted = windows._admitted
    time.sleep(1.0)
    assert windows._admitted <= admitted + 2  # one is ready, one is being made
    chunks.close()
