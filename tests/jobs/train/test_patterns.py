"""What every schedule asks of a model is among the patterns it is trained on."""

import numpy as np
import pytest

from longreel.jobs.train.patterns import ONE_LEVEL, PATTERNS, Levels, draw_levels

SHIFT = 3.0


def drawn(name: str, latents: int = 12, count: int = 200) -> list[Levels]:
    rng = np.random.default_rng(0)
    return [draw_levels(rng, latents, SHIFT, only=name) for _ in range(count)]


@pytest.mark.parametrize("name", [ONE_LEVEL, *PATTERNS])
@pytest.mark.parametrize("latents", [1, 2, 7, 24])
def test_levels_are_noise_levels_and_something_is_learnt(name, latents):
    for levels in drawn(name, latents):
        assert levels.actual_T.shape == levels.told_T.shape == levels.learnt_T.shape == (latents,)
        assert levels.actual_T.min() >= 0
        assert levels.actual_T.max() <= 1
        assert name == "stairs" or levels.learnt_T.any()


@pytest.mark.parametrize("name", sorted({ONE_LEVEL, *PATTERNS} - {"untold"}))
def test_a_latent_is_told_its_own_level(name):
    assert all(np.array_equal(levels.told_T, levels.actual_T) for levels in drawn(name))


@pytest.mark.parametrize("name", ["stairs", "rising"])
def test_queues_and_buffers_never_fall_along_time(name):
    assert all((np.diff(levels.actual_T) >= 0).all() for levels in drawn(name))


def test_stairs_have_the_chunks_and_steps_of_moving_buffers():
    widths = set()
    for levels in drawn("stairs", 24):
        inside = levels.actual_T[(levels.actual_T > 0) & (levels.actual_T < 1)]
        _, counts = np.unique(inside.round(6), return_counts=True)
        widths |= set(counts[1:-1].tolist())  # the first and last may be cut
    assert {1, 2, 3, 4, 8} <= widths


def test_a_prefix_is_finished_and_not_learnt():
    for levels in drawn("prefix"):
        past = levels.actual_T < levels.actual_T[-1]
        assert past[0]
        assert set(levels.actual_T[past]) <= {0.0, 0.02}
        assert not levels.learnt_T[past].any()
        assert levels.learnt_T[~past].all()


def test_an_untold_past_is_cleaner_than_what_its_window_is_told():
    cleaner = 0
    for levels in drawn("untold"):
        assert len(set(levels.told_T)) == 1
        assert (levels.actual_T <= levels.told_T).all()
        assert np.array_equal(levels.learnt_T, levels.actual_T == levels.told_T)
        cleaner += (levels.actual_T < levels.told_T).any()
    assert cleaner > 150


def test_levels_lean_towards_noise_by_the_shift():
    plain = np.concatenate([levels.actual_T for levels in drawn("equal", 4, 2000)])
    assert abs(np.median(plain) - 0.75) < 0.03  # 3 * 0.5 / (1 + 2 * 0.5)


def test_so_many_windows_as_asked_have_one_level():
    rng = np.random.default_rng(0)
    windows = [draw_levels(rng, 12, SHIFT, 0.3) for _ in range(1000)]
    flat = [len(set(levels.actual_T)) == 1 and levels.learnt_T[0] for levels in windows]
    assert np.mean(flat) == pytest.approx(0.3, abs=0.05)
