"""A stream is its reader's: it ends when and where that one says, and leaves nothing."""

import gc
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
import torch
from command import SMALL, files_in

import longreel
from longreel.pipeline import parts
from longreel.pipeline.overlap import run_ahead


def frames_of(*overrides):
    chunks = longreel.stream("a cat", overrides=[*SMALL, *overrides])
    return np.concatenate([chunk.frames for chunk in chunks])


def test_what_is_done_to_a_chunk_changes_nothing_that_comes():
    more = "blocks.policy=dualparal", "blocks.size=2", "video.frames=33"
    whole, seen = frames_of(*more), []
    for chunk in longreel.stream("a cat", overrides=[*SMALL, *more]):
        seen.append(chunk.frames.copy())
        chunk.frames[:] = 0
        chunk.latents_BCTHW.zero_()  # which later blocks attend to
    assert np.array_equal(np.concatenate(seen), whole)


def test_a_stream_is_read_in_the_process_that_began_it(monkeypatch):
    with longreel.stream("a cat", overrides=SMALL) as stream:
        next(stream)
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)  # as in a fork, where no thread goes on
            with pytest.raises(ValueError, match="was begun in another process"):
                next(stream)
        next(stream)


def test_what_runs_ahead_ends_before_its_program_does():
    """In the midst of a step, a thread that goes on aborts the end of Python."""
    program = """
import threading
from longreel.pipeline.overlap import run_ahead
def items():
    try:
        yield 1
        over.wait(60)
        yield 2
    finally:
        print("closed")
over = threading.Event()
ahead = run_ahead(items(), most=1, on_close=over.set)
next(ahead)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "closed\n", "")


def test_an_error_holds_nothing_once_it_is_dealt_with():
    """Where memory did not suffice the next attempt begins at once: it would find all that this
    one held of a GPU, until somebody looks for garbage."""
    held = []

    def items():
        model = torch.nn.Linear(1, 1)
        held.append(weakref.ref(model))
        yield 1
        raise torch.OutOfMemoryError

    gc.collect()
    gc.disable()
    try:
        with closing(run_ahead(items(), most=1)) as ahead:
            assert next(ahead) == 1
            assert held[0]() is not None
            try:
                next(ahead)
            except torch.OutOfMemoryError:
                ended = True
        assert ended
        assert held[0]() is None
    finally:
        gc.enable()


def test_a_prompt_for_a_render_that_is_over_is_refused():
    stream = longreel.stream("a cat", overrides=SMALL)
    assert len([*stream]) > 1
    stream.stop()
    with pytest.raises(ValueError, match="is over, so no block is left"):
        stream.set_prompt("a dog")


@pytest.mark.parametrize("to_its_end", [False, True])
def test_a_stream_that_is_closed_holds_no_model(monkeypatch, to_its_end):
    """It may be a variable for long: another stream would not find its memory on a GPU."""
    held = []
    for name in ("load_dit", "random_vae"):
        load = getattr(parts, name)

        def noted(*args, load=load, **kwargs):
            model = load(*args, **kwargs)
            held.append(weakref.ref(model))
            return model

        monkeypatch.setattr(parts, name, noted)
    with longreel.stream("a cat", overrides=SMALL) as stream:
        next(stream)
        if to_its_end:
            assert [*stream]
    gc.collect()
    assert len(held) == 2
    assert [model() for model in held] == [None, None]
    stream.stop()


def test_a_stream_is_closed_from_any_thread():
    """A reader that waits for a chunk has that one at most."""
    stream = longreel.stream("a cat", overrides=[*SMALL, "video.frames=4001"])
    taken, has_some = [], threading.Event()

    def read():
        for chunk in stream:
            taken.append(chunk.start)
            has_some.set()

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        assert has_some.wait(60)
        stream.close()
        reading.result(60)
    assert 1 <= len(taken) < 500
    assert list(stream) == []


def test_a_stream_that_is_not_read_to_its_end_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stream = longreel.stream("a cat", overrides=SMALL)
    first = next(stream)
    assert (first.block, first.start, first.frames.shape) == (0, 0, (1, 32, 48, 3))
    assert first.frames.dtype == np.uint8
    stream.close()
    assert list(stream) == []
    unread = longreel.stream("a cat", overrides=SMALL)
    del unread
    assert files_in(tmp_path) == {}
    assert np.array_equal(frames_of()[:1], first.frames)  # the next one is not disturbed
