"""One denoising step: from a sample and the model's velocity to the sample at the next level.

A solver keeps nothing between calls. What a multistep solver remembers of one sample is a
`SolverState`, handed in and handed back: it can be saved, moved, and cut (a shorter memory only
lowers the order of the next steps).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .coefficients import (
    Row,
    dpm_order,
    dpm_row,
    unipc_corrector,
    unipc_order,
    unipc_predictor,
)
from .levels import Levels

Noise = Callable[[], Tensor]  # drawn where it is needed: a window of it takes a tenth of a second


@dataclass(frozen=True)
class SolverState:
    """What one sample's past adds to its next step: at most four tensors of its shape."""

    tensors: tuple[Tensor, ...] = ()

    @classmethod
    def empty(cls) -> "SolverState":
        return cls()


class Solver(Protocol):
    """Steps 0 .. levels.steps - 1; step k takes the state step k - 1 gave, or an empty one."""

    levels: Levels

    def step(
        self,
        k: int,
        sample: Tensor,
        velocity: Tensor,
        state: SolverState,
        noise: Noise | None = None,
    ) -> tuple[Tensor, SolverState]: ...


def make_solver(name: str, levels: Levels) -> Solver:
    """The solver that `sampling.solver` names, on levels made for it."""
    makers: dict[str, Callable[[Levels], Solver]] = {
        "euler": Euler,
        "unipc2": lambda levels: UniPC(levels, order=2),
        "unipc3": lambda levels: UniPC(levels, order=3),
        "dpm++2m": lambda levels: DPMSolver(levels, order=2),
        "dpm++3m": lambda levels: DPMSolver(levels, order=3),
        "renoise": Renoise,
    }
    return makers[name](levels)


class Euler:
    """Straight along the velocity."""

    def __init__(self, levels: Levels) -> None:
        self.levels = levels

    def step(
        self,
        k: int,
        sample: Tensor,
        velocity: Tensor,
        state: SolverState,
        noise: Noise | None = None,
    ) -> tuple[Tensor, SolverState]:
        now, end = self.levels.sigmas[k : k + 2]
        return sample + (end - now) * velocity.to(sample.dtype), SolverState()


class Renoise:
    """The prediction of the clean sample, noised afresh to the next level: for few-step models."""

    def __init__(self, levels: Levels) -> None:
        self.levels = levels

    def step(
        self,
        k: int,
        sample: Tensor,
        velocity: Tensor,
        state: SolverState,
        noise: Noise | None = None,
    ) -> tuple[Tensor, SolverState]:
        end = self.levels.sigmas[k + 1]
        clean = _clean(self.levels, k, sample, velocity)
        if end == 0.0:
            return clean, SolverState()
        assert noise is not None, f"step {k} of the renoise solver needs noise"
        return (1 - end) * clean + end * noise().to(clean), SolverState()


class UniPC:
    """Corrects the sample with the prediction just made at it, then predicts the next.

    State: the last corrected sample, then up to `order` predictions, newest first.
    """

    def __init__(self, levels: Levels, order: int) -> None:
        self.levels = levels
        self._order = order
        sigmas, steps = levels.sigmas, levels.steps
        # every row a render can ask for; a long memory at an early step never happens
        self._predictors = {
            (k, past): unipc_predictor(sigmas, k, unipc_order(order, k, steps, past))
            for k in range(steps)
            for past in range(min(k, order) + 1)
        }
        self._correctors = {
            (k, past): unipc_corrector(sigmas, k, unipc_order(order, k - 1, steps, past - 1))
            for k in range(1, steps)
            for past in range(1, min(k, order) + 1)
        }

    def step(
        self,
        k: int,
        sample: Tensor,
        velocity: Tensor,
        state: SolverState,
        noise: Noise | None = None,
    ) -> tuple[Tensor, SolverState]:
        clean = _clean(self.levels, k, sample, velocity)
        past = state.tensors[1:]
        if past:
            sample = _move(self._correctors[k, len(past)], state.tensors[0], (clean, *past))
        predictions = (clean, *past)
        moved = _move(self._predictors[k, len(past)], sample, predictions)
        return moved, _after(self.levels, k, (sample, *predictions[: self._order]))


class DPMSolver:
    """DPM-Solver++ multistep. State: up to `order - 1` predictions, newest first."""

    def __init__(self, levels: Levels, order: int) -> None:
        self.levels = levels
        self._order = order
        self._rows = {
            (k, past): dpm_row(levels.sigmas, k, dpm_order(order, k, levels.steps, past))
            for k in range(levels.steps)
            for past in range(min(k, order - 1) + 1)
        }

    def step(
        self,
        k: int,
        sample: Tensor,
        velocity: Tensor,
        state: SolverState,
        noise: Noise | None = None,
    ) -> tuple[Tensor, SolverState]:
        predictions = (_clean(self.levels, k, sample, velocity), *state.tensors)
        moved = _move(self._rows[k, len(state.tensors)], sample, predictions)
        return moved, _after(self.levels, k, predictions[: self._order - 1])


def _clean(levels: Levels, k: int, sample: Tensor, velocity: Tensor) -> Tensor:
    """The clean sample this velocity points at, in the sample's precision, not the model's."""
    return sample - levels.sigmas[k] * velocity.to(sample.dtype)


def _move(row: Row, sample: Tensor, predictions: Sequence[Tensor]) -> Tensor:
    moved = row.sample * sample
    # a row of lower order is shorter than the memory
    for weight, prediction in zip(row.predictions, predictions, strict=False):
        moved = moved + weight * prediction
    return moved


def _after(levels: Levels, k: int, tensors: tuple[Tensor, ...]) -> SolverState:
    """A finished sample is remembered by nobody."""
    return SolverState() if k + 1 == levels.steps else SolverState(tensors)
