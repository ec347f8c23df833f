"""Where a render's parts run: in this process, or in actors of a Ray cluster.

B batch, C channels, T latents, H height, W width, S text tokens, D channels of a token.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from ..models.vae_state import DecoderState
from ..parallel.chain import Chain, LocalChain
from ..parallel.stage import Stage
from .codec import Codec, Decoded
from .condition import Condition
from .cost import Seconds
from .decoding import SteadyDecoder, make_codec
from .parts import Experts
from .plan import Plan, find_device
from .plan_attention import make_sparse
from .shares import tile_shares
from .shelf import Shelf
from .slices import find_measured, slices
from .solver import make_solver
from .stepper import Stepper
from .windows import Sampling, Windows

if TYPE_CHECKING:
    from ..parallel.crew import Crew
    from ..parallel.placement import Placement
    from ..parallel.ray_chain import Devices
    from ..parallel.ray_tiles import RayTiles
    from ..parallel.ray_worker import RayWorker

_log = logging.getLogger("longreel")
_SETTLE_S = 10.0  # for a cluster to count its devices after some of them are gone


class Backend(Protocol):
    """One render's: opened when it begins, closed when it is over."""

    given_up: threading.Event  # set from any thread: what is waited for ends within moments

    def texts(self, prompts: Sequence[str]) -> Tensor: ...
    def condition(self) -> Condition: ...
    def chain(self, sampling: Sampling) -> Chain: ...

    def decode(self, latents_BCTHW: Tensor, keep: bool = False) -> Iterator[Decoded]:
        """Frames of the next latents, and with `keep` the decoder's state after them; where
        decoding has a worker of its own, it begins with the call and not with the first frame
        asked for."""

    def restore(self, state: DecoderState, num_frames: int) -> None:
        """Decode on from this state, after so many frames."""

    def close(self) -> None: ...


def open_backend(plan: Plan) -> Backend:
    return RayBackend(plan) if plan.backend == "ray" else LocalBackend(plan)


class LocalBackend:
    """Everything in this process, one part after the other."""

    def __init__(self, plan: Plan, shelf: Shelf | None = None) -> None:
        """`shelf`: what is loaded stays there for the next render; none: it goes with this one."""
        self._plan = plan
        self._shelf = shelf or Shelf(keep=False)
        self.stages: tuple[Stage, ...] = ()  # of the conditional branch, once there is a chain
        self.given_up = threading.Event()
        codec = Codec(plan, self._shelf)
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
        self.stages = tuple(conditional)
        return LocalChain(
            conditional,
            make_windows(sampling, device),
            make_stepper(plan, sampling, device),
            *others,
        )

    def close(self) -> None:
        pass


class RayBackend:
    """A worker that reads prompts and decodes, and an actor per device, started in the meantime."""

    def __init__(
        self,
        plan: Plan,
        at_end: Callable[[], None] = lambda: None,
        hear: Callable[[str], None] = _log.warning,
    ) -> None:
        """In a process that is connected to the cluster; `at_end` is called when all is over, and
        `hear` is told of failures that the render survives."""
        from ..parallel.ray_worker import WorkerLost

        self._plan = plan
        self._at_end = at_end
        self._hear = hear
        self._failures = 0  # of the worker, since the last block
        self._moving = threading.RLock()  # held while devices change: a new worker waits for them
        self.given_up = threading.Event()
        self._tiles: RayTiles | None = None
        self._placement = self._place()
        try:
            self._crew = self._begin_crew()
            self._worker = self._begin_worker()
            self._tiles = self._begin_tiles()
            self._decoder = SteadyDecoder(
                lambda: self._tiles or self._worker, self._revive, WorkerLost
            )
            if plan.config.parallel.address != "local":  # the files are there, not here
                self._ask("check")
        except BaseException:
            self.close()
            raise

    def texts(self, prompts: Sequence[str]) -> Tensor:
        texts_NSD: Tensor = self._ask("texts", prompts)
        return texts_NSD

    def condition(self) -> Condition:
        condition: Condition = self._ask("condition")
        return condition

    def chain(self, sampling: Sampling) -> Chain:
        from ..parallel.ray_chain import ChainParts, RayChain

        parallel = self._plan.config.parallel
        return RayChain(
            self._devices(),
            ChainParts(
                stage=partial(make_stage, self._plan),
                windows=partial(make_windows, sampling),
                stepper=partial(make_stepper, self._plan, sampling),
                remember=sampling.remember,
            ),
            timeout_s=parallel.transfer_timeout_s,
            link=parallel.link,
            check=self._check,
            repairs=parallel.repairs,
            regroup=self._regroup,
            hear=self._hear,
        )

    def measured(self) -> Seconds | None:
        """Where the stages are: their device may be none of this machine's."""
        measured: Seconds | None = self._ask("measured")
        return measured

    def decode(self, latents_BCTHW: Tensor, keep: bool = False) -> Iterator[Decoded]:
        self._failures = 0  # it comes on
        return self._decoder.decode(latents_BCTHW, keep)

    def restore(self, state: DecoderState, num_frames: int) -> None:
        self._decoder.restore(state, num_frames)

    def close(self) -> None:
        """Every process of this render ends."""
        if hasattr(self, "_worker"):
            self._worker.close()
        if self._tiles is not None:
            self._tiles.close()
        if hasattr(self, "_crew"):
            self._crew.close()
        self._placement.remove()
        self._at_end()

    def _place(self) -> "Placement":
        from ..parallel.placement import place

        parallel = self._plan.config.parallel
        return place(
            self._plan.layout,
            self._plan.config.model.device,
            timeout_s=parallel.place_timeout_s,
            may_grow=parallel.address != "local",
            check=self._check,
        )

    def _begin_crew(self) -> "Crew":
        from ..parallel.crew import Crew

        return Crew(self._placement, self._check, self._plan.config.parallel.place_timeout_s)

    def _begin_worker(self) -> "RayWorker":
        from ..parallel.ray_worker import RayWorker

        build = partial(make_codec, self._plan, self._placement.device)
        timeout_s = self._plan.config.parallel.transfer_timeout_s
        return RayWorker(self._placement, build, self._check, timeout_s)

    def _begin_tiles(self) -> "RayTiles | None":
        """Workers beside the first, where several decode the VAE's tiles."""
        from ..parallel.ray_tiles import RayTiles

        if len(shares := tile_shares(self._plan)) < 2:
            return None
        build = partial(make_codec, self._plan, self._placement.device)
        timeout_s = self._plan.config.parallel.transfer_timeout_s
        return RayTiles(self._placement, build, self._check, self._worker, shares, timeout_s)

    def _devices(self) -> "Devices":
        from ..parallel.ray_chain import Devices

        return Devices(
            crew=self._crew,
            slices=slices(self._plan, self.measured()),
            device=self._placement.device,
        )

    def _regroup(self) -> "Devices":
        """All anew on the devices that are left: any number of stages makes the same bits."""
        from ..parallel.placement import find_fewer

        with self._moving:
            self._placement.remove()
            parallel = find_fewer(
                self._plan.config.parallel,
                self._placement.device,
                timeout_s=_SETTLE_S,
                check=self._check,
            )
            config = replace(self._plan.config, parallel=parallel)
            self._plan = replace(self._plan, request=replace(self._plan.request, config=config))
            self._placement = self._place()
            self._crew = self._begin_crew()
            self._renew_worker()  # its device is given back as well
        return self._devices()

    def _ask(self, method: str, *args: object) -> Any:
        """Of the worker, or of the one in its place."""
        from ..parallel.ray_worker import WorkerLost

        while True:
            try:
                return self._worker.call(method, *args)
            except WorkerLost as error:
                self._revive(error)

    def _revive(self, error: Exception) -> None:
        """Another worker in the place of one that is lost, if that has not happened too often."""
        with self._moving:
            self._failures += 1
            if self._failures > self._plan.config.parallel.repairs:
                raise error
            self._hear(f"{error}; another one goes on")
            self._renew_worker()

    def _renew_worker(self) -> None:
        if self._tiles is not None:
            self._tiles.close()
        self._worker.close()
        self._worker = self._begin_worker()
        self._tiles = self._begin_tiles()

    def _check(self) -> None:
        if self.given_up.is_set():
            raise GivenUp


class GivenUp(Exception):  # noqa: N818 -- nobody's error: nobody waits for it any more
    """The reader of a render has gone while it waited for others."""


def make_stage(
    plan: Plan, layers: range, device: str, shelf: Shelf | None = None, branch: int = 0
) -> Stage:
    """A stage with its weights, which may be on a shelf already."""

    def load() -> Experts:
        experts = Experts(replace(plan, device=find_device(device)), layers)
        experts.load()
        return experts

    part = ("stage", layers.start, layers.stop, branch, plan.policy == "whole")
    experts = (shelf or Shelf(keep=False)).get(plan.config.model, part, load)
    return Stage(experts.get, layers, make_sparse(plan))


def make_windows(sampling: Sampling, device: str) -> Windows:
    return Windows(sampling=sampling.to(find_device(device)))


def make_stepper(plan: Plan, sampling: Sampling, device: str) -> Stepper:
    solver = make_solver(plan.config.sampling.solver, sampling.levels)
    return Stepper(sampling=sampling.to(find_device(device)), solver=solver)
