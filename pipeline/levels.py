"""The ladder of noise levels a latent walks down, and the timestep the model is told on each rung.

Tables are computed in float64 and rounded to float32 once, because that is what schedulers hold:
near sigma = 1 the rounding moves log(1 - sigma) by a percent, so a table of finer numbers would be
another table.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

TRAIN_STEPS = 1000  # levels the models were trained on; timestep = TRAIN_STEPS * sigma

_MAX_FIRST = 1 - 1e-6  # multistep solvers take log(1 - sigma)

_Table = NDArray[np.float64]


@dataclass(frozen=True)
class Levels:
    """Step k goes from sigmas[k] to sigmas[k + 1] and tells the model timesteps[k]."""

    sigmas: tuple[float, ...]  # one more than steps; falling, the last is 0
    timesteps: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.sigmas) == len(self.timesteps) + 1 >= 2
        assert self.sigmas[-1] == 0.0
        assert all(high > low for high, low in pairwise(self.sigmas)), self.sigmas

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def low_noise(self, step: int, boundary: float) -> bool:
        """Whether `step` belongs to the low-noise expert; boundary 0: there is one expert."""
        return self.timesteps[step] < boundary * TRAIN_STEPS


def make_levels(solver: str, steps: int, shift: float, timesteps: tuple[int, ...] = ()) -> Levels:
    """The levels that `sampling.solver` runs on; `timesteps` are read by renoise alone."""
    if solver == "renoise":
        assert steps == len(timesteps), (steps, timesteps)
        return few_step_levels(timesteps, shift)
    if solver == "euler":
        return euler_levels(steps, shift)
    return unipc_levels(steps, shift) if solver.startswith("unipc") else dpm_levels(steps, shift)


def unipc_levels(steps: int, shift: float) -> Levels:
    """Evenly spaced from 1, shifted, the first held just under 1; timesteps cut to integers."""
    sigmas = _shifted(np.linspace(1, 1 / TRAIN_STEPS, steps + 1)[:-1], shift)
    sigmas = np.minimum(sigmas, _MAX_FIRST)
    return _levels(sigmas, np.trunc(sigmas * TRAIN_STEPS), shift)


def dpm_levels(steps: int, shift: float) -> Levels:
    """Evenly spaced from 0.999 to 0, shifted; timesteps cut to integers."""
    rising = 1.0 - np.linspace(1, 1 / TRAIN_STEPS, steps + 1)
    sigmas = np.minimum(_shifted(rising, shift)[:0:-1], _MAX_FIRST)
    return _levels(sigmas, np.trunc(sigmas * TRAIN_STEPS), shift)


def euler_levels(steps: int, shift: float) -> Levels:
    """Evenly spaced from 1 to the lowest trained level after the shift, then shifted once more."""
    # float32, because the published scheduler keeps the levels of training so
    lowest = np.float32(1) / np.float32(TRAIN_STEPS)
    lowest = np.float32(shift) * lowest / (np.float32(1) + np.float32(shift - 1) * lowest)
    grid = np.linspace(TRAIN_STEPS, float(lowest) * TRAIN_STEPS, steps) / TRAIN_STEPS
    sigmas = _shifted(grid, shift)
    return _levels(sigmas, _exact_timesteps(sigmas), shift)


def few_step_levels(timesteps: tuple[int, ...], shift: float) -> Levels:
    """The levels a few-step model was distilled at, given before the shift.

    For a list that its authors already shifted, `shift` is 1.
    """
    sigmas = _shifted(np.array(timesteps, np.float64) / TRAIN_STEPS, shift)
    return _levels(sigmas, _exact_timesteps(sigmas), shift)


def _shifted(sigmas: _Table, shift: float) -> _Table:
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def _exact_timesteps(sigmas: _Table) -> _Table:
    return (sigmas.astype(np.float32) * np.float32(TRAIN_STEPS)).astype(np.float64)


def _levels(sigmas: _Table, timesteps: _Table, shift: float) -> Levels:
    """Round, append the clean level, and refuse a table whose rungs fell together."""
    rungs = [*map(float, sigmas.astype(np.float32)), 0.0]
    if not all(high > low for high, low in pairwise(rungs)):
        raise ValueError(
            f"sampling.shift={shift} puts two of {len(sigmas)} steps on the same level, so that "
            "one of them would do nothing; published models use a shift of 1 to 20"
        )
    return Levels(tuple(rungs), tuple(map(float, timesteps)))
