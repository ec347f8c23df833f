"""What a render is told while it stands where it goes on from, before its chain has begun."""

from contextlib import closing
from functools import partial

import pytest
from thread_chain import ThreadBackend
from tiny_blocks import overrides

from longreel.jobs.render import plan_render
from longreel.pipeline.backend import GivenUp, open_backend
from longreel.pipeline.generator import Generator

pytestmark = pytest.mark.usefixtures("tiny_archs")


def plan():
    settings = overrides("causal", "model.device=cpu", "checkpoint.every_s=0", steps=3)
    return plan_render("a cat", frames=0, seed=3, overrides=settings)


@pytest.mark.parametrize("backend", [open_backend, ThreadBackend])
@pytest.mark.parametrize("tell", [Generator.stop, partial(Generator.set_prompt, prompt="a dog")])
def test_blocks_that_had_begun_are_not_told_while_those_before_them_are_decoded(tell, backend):
    kept = []
    with closing(Generator(plan(), keep=kept.append).blocks()) as blocks:
        while len(kept) < 5:  # none is decoded: all blocks so far are in it
            next(blocks)
    start = kept[-1]
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
