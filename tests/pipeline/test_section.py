"""A section keeps the prompts beside it, and its noise is its own."""

from hypothesis import given
from hypothesis import strategies as st

from longreel.pipeline.noise import SEED_LIMIT, revision_seed
from longreel.pipeline.schedule import BlockSchedule
from longreel.pipeline.section import (
    Section,
    change_prompts,
    prompt_times,
    section_prompts,
)

WORDS = st.sampled_from(["a cat", "a dog", "a fish"])
LATENTS = st.integers(1, 30)


def at(prompts, latent):
    return [text for first, text in prompts if first <= latent][-1]


@given(st.dictionaries(LATENTS, WORDS, max_size=4), LATENTS, LATENTS, st.booleans())
def test_a_change_of_prompt_is_for_its_latents_alone(changes, first, count, to_end):
    before = ((0, "a bird"), *sorted(changes.items()))
    after = change_prompts(before, first, None if to_end else first + count, "a house")
    for latent in range(70):
        inside = first <= latent and (to_end or latent < first + count)
        assert at(after, latent) == ("a house" if inside else at(before, latent))
    assert [latent for latent, _ in after] == sorted({latent for latent, _ in after})


def test_a_block_reads_the_prompt_that_its_first_latent_has():
    schedule = BlockSchedule(size=3, steps=2, num_latents=17, first=8, max_inflight=1)
    assert [schedule.bounds(block)[0] for block in range(6)] == [0, 2, 5, 8, 11, 14]
    prompts = ((0, "a cat"), (3, "a dog"), (8, "a fish"), (11, "a fish"), (14, "a cat"))
    section = Section(revision=1, first=8, stop=17, prompts=prompts)
    assert section_prompts(section, schedule) == {0: "a cat", 2: "a dog", 3: "a fish", 5: "a cat"}
    times = prompt_times(prompts, fps=16, frames_per_latent=4)
    assert times == ((9 / 16, "a dog"), (29 / 16, "a fish"), (53 / 16, "a cat"))


def test_the_noise_of_each_revision_is_another_and_that_of_the_first_video_the_seeds():
    seeds = {
        revision_seed(seed, revision) for seed in (0, 1, SEED_LIMIT - 1) for revision in range(9)
    }
    assert len(seeds) == 27
    assert all(0 <= seed < SEED_LIMIT for seed in seeds)
    assert revision_seed(7, 0) == 7
    assert revision_seed(7, 3) == revision_seed(7, 3)
