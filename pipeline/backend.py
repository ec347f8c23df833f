"""Where a render's parts run: in this process, or in actors of a Ray cluster.

B batch, C channels, T latents, H height, W width, S text tokens, D channels of a token.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from ..models.shelf import Shelf
from ..models.vae_state import DecoderState
from ..parallel.chain import Chain, LocalChain
from ..parallel.stage import Stage
from .codec import Codec, Decoded
from .condition import Condition
from .parts import Experts
from .plan import DTYPES, Plan, find_device
from .plan_attention import check_backend, make_sparse
from .slices import find_measured, slices
from .solver import make_solver
from .stepper import Stepper
from .windows import Sampling, Windows


class Backend(Protocol):
    """One render's: opened when it begins, closed when it is over."""

    def texts(self, prompts: Sequence[str]) -> Tensor: ...
    def condition(self) -> Condition: ...
    def chain(self, sampling: Sampling) -> Chain: ...

    def expect_decoding(self) -> None:
        """There is a chain, whose blocks will come: where decoding has a worker of its own, it
        loads what it needs in the meantime."""

    def decode(self, latents_BCTHW: Tensor, keep: bool = False) -> Iterator[Decoded]:
        """Frames of the next latents, and with `keep` the decoder's state after them; where
        decoding has a worker of its own, it begins with the call and not with the first frame
        asked for."""

    def restore(self, state: DecoderState, num_frames: int) -> None:
        """Decode on from this state, after so many frames."""

    def busy_s(self) -> list[float]:
        """Of each stage, since the chain began; empty before, or where it is not known yet."""

    def close(self) -> None: ...


# with what is set, from any thread, to end within moments what the backend waits for
Open = Callable[[Plan, threading.Event], Backend]


def open_backend(plan: Plan, given_up: threading.Event) -> Backend:
    from .ray_backend import RayBackend

    return RayBackend(plan, given_up) if plan.backend == "ray" else LocalBackend(plan)


class LocalBackend:
    """Everything in this process, one part after the other."""

    def __init__(self, plan: Plan, shelf: Shelf | None = None) -> None:
        """`shelf`: what is loaded stays there for the next render; none: it goes with this one."""
        self._plan = plan
        self._shelf = shelf or Shelf(keep=False)
        self._chain: LocalChain | None = None
        self._codec = codec = Codec(plan, self._shelf)
        self.texts = codec.texts
        self.condition = codec.condition
        self.decode = codec.decode
        self.restore = codec.restore

    def chain(self, sampling: Sampling) -> Chain:
        plan, device = self._plan, str(self._plan.device)
        cut = slices(plan, find_measured(plan, plan.device))
        conditional, *others = (
            [make_stage(plan, layers, device, self._shelf, branch) for layers in cut]
            for branch in range(plan.layout.num_branches)
        )
        self._chain = LocalChain(
            conditional,
            make_windows(sampling, device),
            make_stepper(plan, sampling.without_texts(), device),
            *others,
        )
        return self._chain

    def expect_decoding(self) -> None:
        pass

    def busy_s(self) -> list[float]:
        return self._chain.busy_s if self._chain else []

    def close(self) -> None:
        """What is on no shelf goes now: whoever has rendered may be held for long."""
        self._codec.close()


class GivenUp(Exception):  # noqa: N818 -- nobody's error: nobody waits for it any more
    """The reader of a render has gone while it waited for others."""


def check_wanted(given_up: threading.Event) -> None:
    """Raises GivenUp once that is set."""
    if given_up.is_set():
        raise GivenUp


def make_stage(
    plan: Plan, layers: range, device: str, shelf: Shelf | None = None, branch: int = 0
) -> Stage:
    """A stage with its weights, which may be on a shelf already."""

    place = find_device(device)
    check_backend(plan.config, plan.arch, place, DTYPES[plan.config.model.dtype])

    def load() -> Experts:
        experts = Experts(replace(plan, device=place), layers)
        experts.load()
        return experts

    part = ("stage", layers.start, layers.stop, branch, plan.policy == "whole")
    experts = (shelf or Shelf(keep=False)).get(plan.config.model, part, load)
    return Stage(experts.get, layers, make_sparse(plan), place)


def make_windows(sampling: Sampling, device: str) -> Windows:
    return Windows(sampling=sampling.to(find_device(device)))


def make_stepper(plan: Plan, sampling: Sampling, device: str) -> Stepper:
    solver = make_solver(plan.config.sampling.solver, sampling.levels)
    return Stepper(sampling=sampling.to(find_device(device)), solver=solver)
