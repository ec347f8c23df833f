"""What a render is told while it stands where it goes on from, before its chain has begun."""

import threading
from contextlib import closing
from functools import partial

import pytest
from thread_chain import ThreadBackend
from tiny_blocks import overrides

from longreel.jobs.render import plan_render
from longreel.parallel.chain import LocalChain
from longreel.parallel.errors import ChainBroken
from longreel.pipeline.backend import GivenUp, LocalBackend, open_backend
from longreel.pipeline.errors import RenderError
from longreel.pipeline.generator import Generator

pytestmark = pytest.mark.usefixtures("tiny_archs")


def plan():
    settings = overrides("causal", "model.device=cpu", "checkpoint.every_s=0", steps=3)
    return plan_render("a cat", frames=0, seed=3, overrides=settings)


@pytest.fixture
def start(tiny_archs):
    """Where five blocks are clean, and none is decoded."""
    kept = []
    with closing(Generator(plan(), keep=kept.append).blocks()) as blocks:
        while len(kept) < 5:
            next(blocks)
    return kept[-1]


@pytest.mark.parametrize("what", ["go on", "close", "fail"])
def test_a_chain_begins_while_blocks_that_were_clean_are_decoded(start, what):
    begins, may, ended = threading.Event(), threading.Event(), []

    class Chain(LocalChain):
        def _run(self, *args):
            begins.set()
            try:
                assert may.wait(60)
                if what == "fail":
                    raise ChainBroken("it was lost")
                yield from super()._run(*args)
            finally:
                ended.append(True)

    class Backend(LocalBackend):
        def __init__(self, plan, given_up):
            super().__init__(plan)

        def chain(self, sampling):
            chain = super().chain(sampling)
            chain.__class__ = Chain
            return chain

    before = threading.active_count()
    with closing(Generator(plan(), open_backend=Backend, start=start).chunks()) as chunks:
        numbers = [next(chunks).block]
        assert begins.wait(20), "it waits for the reader"
        may.set()
        if what == "go on":
            numbers += [next(chunks).block for _ in range(9)]
            assert sorted({*numbers}) == [*range(numbers[-1] + 1)]
        elif what == "fail":
            with pytest.raises(RenderError, match="it was lost"):
                list(chunks)
    assert ended == [True]
    assert threading.active_count() == before


@pytest.mark.parametrize("backend", [open_backend, ThreadBackend])
@pytest.mark.parametrize("tell", [Generator.stop, partial(Generator.set_prompt, prompt="a dog")])
def test_blocks_that_had_begun_are_not_told_while_those_before_them_are_decoded(
    tell, backend, start
):
    begun = start.chain.walk.next_block
    generator = Generator(plan(), open_backend=backend, start=start)
    with closing(generator.chunks()) as chunks:
        next(chunks)  # of the first of those
        assert tell(generator) >= begun > 2


@pytest.mark.parametrize("tell", [Generator.stop, partial(Generator.set_prompt, prompt="a dog")])
def test_who_tells_a_render_that_is_given_up_meanwhile_is_told_so(tell):
    def give_up(*args):
        raise GivenUp

    generator = Generator(plan())
    with closing(generator.chunks()) as chunks:
        next(chunks)
        generator._chain.stop = generator._chain.change_text = give_up  # as while it asks actors
        with pytest.raises(ValueError, match="is over"):
            tell(generator)
