"""The last stage's side of the ring: guidance and the solver, on the latents of blocks in flight.

B batch, C channels, T latents, H height, W width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..parallel.stage import Moved
from ..parallel.tasks import Part, Task
from .errors import RenderError
from .guidance import guide
from .solver import Solver, SolverState
from .windows import Sampling


@dataclass
class Stepper:
    """Holds a sample and the solver's memory for every block in flight."""

    sampling: Sampling
    solver: Solver
    _states: dict[int, tuple[Tensor, SolverState]] = field(default_factory=dict)

    @torch.inference_mode()
    def step(self, task: Task, velocities_BCTHW: Sequence[Tensor]) -> list[Moved]:
        """One step of every block that the task writes; velocities: conditional, unconditional."""
        moved, first = [], 0
        for part in task.parts:
            run = slice(first, first + part.num_latents)
            first = run.stop
            if part.write:
                mine = [velocity_BCTHW[:, :, run] for velocity_BCTHW in velocities_BCTHW]
                moved.append(self._move(part, mine))
        return moved

    def held(self) -> dict[int, tuple[Tensor, ...]]:
        """Of every block in flight its sample and the solver's memory, never written into later."""
        return {block: (sample, *state.tensors) for block, (sample, state) in self._states.items()}

    def restore(self, held: Mapping[int, tuple[Tensor, ...]]) -> None:
        """Go on from between two ticks."""
        device = self.sampling.device
        self._states = {
            block: (sample.to(device), SolverState(tuple(tensor.to(device) for tensor in memory)))
            for block, (sample, *memory) in held.items()
        }

    def _move(self, part: Part, velocities_BCTHW: Sequence[Tensor]) -> Moved:
        s, k = self.sampling, part.step
        if k == 0:
            self._states[part.block] = s.noise(part.block), SolverState.empty()
        sample_BCTHW, state = self._states.pop(part.block)
        velocity_BCTHW = velocities_BCTHW[0]
        scale = s.guidance.scales[k]
        if scale is not None:
            velocity_BCTHW = guide(velocity_BCTHW, velocities_BCTHW[1], scale)
        noise = partial(s.noise, part.block, k)
        sample_BCTHW, state = self.solver.step(k, sample_BCTHW, velocity_BCTHW, state, noise)
        self._check_finite(part, sample_BCTHW)
        if k + 1 < s.levels.steps:
            self._states[part.block] = sample_BCTHW, state
        latents_BCTHW = s.condition.pin(sample_BCTHW, part.start)
        return Moved(block=part.block, step=k + 1, latents_BCTHW=latents_BCTHW)

    def _check_finite(self, part: Part, sample_BCTHW: Tensor) -> None:
        if not torch.isfinite(sample_BCTHW).all():
            levels = self.sampling.levels
            raise RenderError(
                f"latents of block {part.block} hold NaN or infinity after step {part.step + 1} of "
                f"{levels.steps} (level {levels.sigmas[part.step]:.3f}), so its frames would be "
                "black; try model.dtype=bfloat16 or float32, a lower sampling.guidance, or check "
                "the weights"
            )
