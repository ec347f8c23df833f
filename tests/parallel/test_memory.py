"""However long a stream goes on, no process of it grows."""

import ctypes
import os
import weakref
from contextlib import closing
from functools import partial
from itertools import groupby, islice
from pathlib import Path

import pytest
from tiny_blocks import overrides

from longreel.jobs.cluster import connect
from longreel.jobs.render import plan_render
from longreel.jobs.serve.warm import WarmBackends
from longreel.pipeline.backend import open_backend as open_local
from longreel.pipeline.generator import Generator

pytestmark = pytest.mark.usefixtures("tiny_archs")
MOST = 0.02
LOOKS = 8  # blocks: more than are finished in one burst
STEPS = {
    "causal": ["sampling.timesteps=[1000,500]", "sampling.steps=2"],
    "dualparal-grouped": ["sampling.steps=2"],
}
LENGTHS = pytest.mark.parametrize(
    ("early", "late"), [(10, 60), pytest.param(30, 300, marks=pytest.mark.slow)]
)


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.ray)], scope="module")
def backend(request):
    if request.param == "local":
        yield request.param
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # actors give back what they free at once: glibc would keep some of a decoder's buffers for
        # the next frame, now more and now less, up to 4 % of all
        patch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
        disconnect = connect("local")
        yield request.param
        disconnect()


@pytest.fixture(scope="module")
def open_backend(backend):
    """Over Ray all streams are made by the same actors, which are there for one after the other."""
    warm = WarmBackends()
    yield partial(warm.open, hear=[].append)
    warm.release()


def endless(policy, backend, open_backend, *more):
    plan = plan_render(
        "a cat",
        frames=0,
        overrides=[
            *overrides(policy, *STEPS[policy], "sampling.guidance_mode=none", *more),
            f"parallel.num_stages={1 if backend == 'local' else 2}",
            f"parallel.backend={backend}",
            "model.device=cpu",
            "model.arch=test-causal",  # one for all
        ],
    )
    return Generator(plan, open_backend=open_backend)


def processes() -> dict[str, int]:
    """This one, and the actors of the cluster that it has started."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            titles[int(folder.name)] = (folder / "cmdline").read_text().partition("\0")[0]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        parents[int(folder.name)] = int(parent)
    mine = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    actors = [pid for pid in mine if titles[pid].startswith(("ray::StageActor", "ray::Host"))]
    return {"driver": os.getpid()} | {f"{titles[pid].split('.')[0]} {pid}": pid for pid in actors}


def resident(pid: int) -> int:
    """Bytes of its pages that are in memory, those it shares with others included."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def least(blocks) -> dict[str, int]:
    """Of every process over a few blocks: what it takes only while it works is not counted."""
    found, seen = processes(), []
    for _ in islice(blocks, LOOKS):
        ctypes.CDLL(None).malloc_trim(0)  # of this process, for the same reason
        seen.append({name: resident(pid) for name, pid in found.items()})
    assert len(seen) == LOOKS, "the stream has ended"
    return {name: min(at[name] for at in seen) for name in found}


def check_growth(generator, blocks, early: int, late: int, num_processes: int) -> None:
    for _ in islice(blocks, early - LOOKS):
        pass
    first = least(blocks)
    assert len(first) == num_processes, first
    for _ in islice(blocks, late - early - LOOKS):
        pass
    last = least(blocks)
    growth = {name: last[name] / first[name] - 1 for name in first}
    print({name: f"{first[name] / 2**20:.1f} MiB {growth[name]:+.2%}" for name in first})
    assert max(growth.values()) < MOST, growth
    generator.stop()
    for _ in blocks:
        pass


@LENGTHS
@pytest.mark.parametrize("policy", STEPS)
def test_denoising_for_ever_takes_no_more_memory(policy, backend, open_backend, early, late):
    # a block's latents are so large (72 KiB), and its keys and values, that 100 of them would show
    generator = endless(policy, backend, open_backend, "video.height=128", "video.width=192")
    with closing(generator.blocks()) as blocks:
        check_growth(generator, blocks, early, late, 1 if backend == "local" else 4)


@pytest.mark.parametrize("read", ["blocks", "chunks"])
def test_what_was_read_is_let_go(read):
    """Also by what would put checkpoints together, if somebody kept them."""
    generator = endless("causal", "local", open_local)
    with closing(getattr(generator, read)()) as stream:
        latents = [weakref.ref(one.latents_BCTHW) for one in islice(stream, 12)]
        assert [one() is None for one in latents[:6]] == [True] * 6


@LENGTHS
def test_decoding_for_ever_takes_no_more_memory(backend, open_backend, early, late):
    # frames of a block are 54 KiB, and what is decoded of each frame on the way is far more
    sizes = ("video.height=32", "video.width=48")
    generator = endless("dualparal-grouped", backend, open_backend, *sizes)
    with closing(generator.chunks()) as chunks:
        check_growth(generator, by_block(chunks), early, late, 1 if backend == "local" else 4)


def by_block(chunks):
    for block, frames in groupby(chunks, key=lambda chunk: chunk.block):
        assert sum(len(chunk.frames) for chunk in frames) > 0
        yield block
