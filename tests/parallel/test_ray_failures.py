"""Whatever is lost of a render over Ray, its frames are those of an undisturbed one."""

import os
import re
import signal
import threading
import time
from contextlib import closing
from functools import cache, partial

import numpy as np
import poison
import pytest
from processes import all_gone
from ray_cluster import frames_of, free_cpus, make_plan, pids_of
from thread_chain import ThreadBackend

from longreel.parallel import crew, loading, ray_worker
from longreel.pipeline import ray_backend
from longreel.pipeline.backend import open_backend
from longreel.pipeline.errors import RenderError
from longreel.pipeline.generator import Generator

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("tiny_archs", "two_nodes")]

GUIDED = "sampling.guidance_mode=sequential"  # the few-step policies have none of their own
BORNE = ("checkpoint.every_s=0.1", "parallel.transfer_timeout_s=4", "parallel.backend=ray")


FRAMES = 81


@cache
def expected(policy, **layout):
    """Made without actors: by one stage, or by threads where devices share stages."""
    over = ["parallel.backend=ray"] * bool(layout)
    plan = make_plan(policy, GUIDED, *over, frames=FRAMES, **layout)
    generator = Generator(plan, open_backend=ThreadBackend if layout else open_backend)
    with closing(generator.chunks()) as chunks:
        return np.concatenate([chunk.frames for chunk in chunks])


THREE = {"num_stages": 3}
SPLIT = {"num_stages": 2, "cfg": "split"}
SHARED = {"num_stages": 4, "devices": 2}
PAIRS = {"num_stages": 2, "gpus_per_stage": 2}
KILL, STOP = signal.SIGKILL, signal.SIGSTOP


@pytest.mark.parametrize(
    ("policy", "layout", "actor", "sent", "words"),
    [
        ("dualparal-grouped", THREE, 1, KILL, r"stage 2 of 3 \(layers 2 to 3\) .* ended"),
        ("causal", THREE, 1, STOP, r"stage 2 of 3 \(layers 2 to 3\) .* does not answer"),
        ("dualparal", SHARED, 1, KILL, r"the actor of stages 3 to 4 of 4 \(layers 3 to 4\) "),
        ("causal", PAIRS, 3, KILL, r"device 2 of 2 of stage 2 of 2 \(layers 3 to 4\) .* ended"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("dualparal", SPLIT, 2, KILL, r"stage 1 of 2 \(layers 0 to 2, uncondit"),
                ("causal", THREE, 0, KILL, r"stage 1 of 3 .* ended"),
                ("dualparal-grouped", THREE, 2, STOP, r"stage 3 of 3 .* does not answer"),
                ("dualparal", SPLIT, 0, KILL, r"stage 1 of 2 \(layers 0 to 2, conditional branch"),
                ("dualparal", SPLIT, 3, STOP, r"stage 2 of 2 \(.*, unconditional branch\) "),
                ("causal", PAIRS, 0, STOP, r"device 1 of 2 of stage 1 of 2 .* does not answer"),
            )
        ),
    ],
)
def test_an_actor_that_is_lost_is_named_and_replaced(policy, layout, actor, sent, words, caplog):
    hurt = []

    def lose(backend):
        hurt.extend(pids_of(backend))
        os.kill(hurt[actor], sent)

    plan = make_plan(policy, GUIDED, *BORNE, frames=FRAMES, **layout)
    truth = expected(policy, **(layout if layout is PAIRS else {}))
    assert np.array_equal(frames_of(plan, lose), truth)
    assert re.search(words, caplog.text)
    assert re.search(r"was lost at block \d+, step \d+", caplog.text)
    assert all_gone(hurt, within_s=5.0)
    assert free_cpus() == 6


def test_a_stage_that_hangs_while_it_joins_is_replaced(monkeypatch, tmp_path, caplog):
    """It answers all the while, and what it is asked next would come behind that."""
    late = partial(poison.make_windows_late, str(tmp_path / "first"))
    monkeypatch.setattr(ray_backend, "make_windows", late)
    plan = make_plan("dualparal", GUIDED, *BORNE, frames=33, num_stages=2)
    with closing(Generator(plan).chunks()) as chunks:
        frames = np.concatenate([chunk.frames for chunk in chunks])
    plain = make_plan("dualparal", GUIDED, frames=33)
    with closing(Generator(plain).chunks()) as chunks:
        assert np.array_equal(frames, np.concatenate([chunk.frames for chunk in chunks]))
    assert caplog.text.count("stages to join") == 1
    assert free_cpus() == 6


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize(
    ("made", "poisoned", "who"),
    [
        ("make_stage", poison.make_stage_from, r"stage 1 of 2 \(layers 0 to 2\) on node \w{8}"),
        ("make_codec", poison.make_codec_from, r"the worker that reads prompts .*, at 'texts',"),
    ],
    ids=["stage", "worker"],
)
def test_who_hangs_where_it_reads_weights_is_named(
    made, poisoned, who, answers, monkeypatch, tmp_path, caplog
):
    """It answers all the while. It was waited for in silence, for an hour, and for five more."""
    os.mkfifo(pipe := tmp_path / "weights")
    monkeypatch.setattr(ray_backend, made, partial(poisoned, str(pipe)))
    monkeypatch.setattr(crew, "_ALIVE_S", 0.2)
    monkeypatch.setattr(ray_worker, "_PING_EVERY_S", 0.2)
    monkeypatch.setattr(loading, "_STILL_S", 0.5)
    monkeypatch.setattr(loading, "_OVER_S", 60.0 if answers else 2.0)
    plan = make_plan("dualparal", GUIDED, *BORNE, frames=33, num_stages=2)
    named = rf"{who} has stood still for \d+ s where it reads"

    def answer():
        while not re.search(named, caplog.text):
            time.sleep(0.1)
        pipe.write_bytes(b"weights")

    with closing(Generator(plan).chunks()) as chunks:
        if answers:
            threading.Thread(target=answer, daemon=True).start()
            assert sum(len(chunk.frames) for chunk in chunks) == 33
        else:
            with pytest.raises(RenderError, match="see that they can be read there"):
                next(chunks)
    heard = [record.getMessage() for record in caplog.records]
    assert heard
    assert all(re.match(named, words) for words in heard)
    assert free_cpus() == 6


@pytest.mark.parametrize("sent", [KILL, pytest.param(STOP, marks=pytest.mark.slow)])
def test_a_decoder_that_is_lost_is_replaced_where_it_stood(sent, caplog):
    hurt = []

    def lose(backend):
        hurt.extend(pids_of(backend))
        os.kill(hurt[-1], sent)

    plan = make_plan("dualparal", GUIDED, *BORNE, frames=FRAMES, num_stages=2)
    assert np.array_equal(frames_of(plan, lose, "decode", 30), expected("dualparal"))
    assert "the worker that reads prompts and decodes was lost" in caplog.text
    assert all_gone(hurt, within_s=5.0)
