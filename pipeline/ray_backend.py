"""A render's parts in actors of a Ray cluster: one render's, or one after the other's.

B batch, C channels, T latents, H height, W width, S text tokens, D channels of a token.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..models.shelf import Shelf
from ..models.vae_state import DecoderState
from ..parallel.chain import Chain
from .backend import GivenUp, check_wanted, make_stage, make_stepper, make_windows
from .codec import Decoded
from .condition import Condition
from .cost import Seconds
from .decoding import SteadyDecoder, make_codec
from .plan import Plan
from .shares import tile_shares
from .slices import slices
from .windows import Sampling

if TYPE_CHECKING:
    from ..parallel.crew import Crew
    from ..parallel.placement import Placement
    from ..parallel.ray_chain import Bear, Devices, RayChain
    from ..parallel.ray_tiles import RayTiles
    from ..parallel.ray_worker import RayWorker, WorkerLost

_log = logging.getLogger("longreel")
_SETTLE_S = 10.0  # for a cluster to count its devices after some of them are gone


class RayBackend:
    """A worker that reads prompts and decodes, and an actor per device, started in the meantime."""

    def __init__(
        self,
        plan: Plan,
        given_up: threading.Event,
        at_end: Callable[[], None] = lambda: None,
        hear: Callable[[str], None] = _log.warning,
        stays: bool = False,
    ) -> None:
        """In a process that is connected to the cluster; `given_up` is set from any thread to end
        what is waited for, `at_end` is called when all is over, and `hear` is told of failures that
        the render survives. `stays`: a render that ends well leaves everything for `renew`, and
        somebody calls `end`."""
        self._at_end = at_end
        self._stays = stays
        self._ended = False
        self._tiles: RayTiles | None = None
        self._slices: list[range] | None = None
        self._moving = threading.RLock()  # held while devices change: a new worker waits for them
        self._take_on(plan, given_up, hear)
        self._placement = self._place()
        try:
            self._crew = self._begin_crew()
            self._worker = self._begin_worker()
            self._wait_for_stages()
            self._tiles = self._begin_tiles()
            self._check_files()
        except BaseException:
            self.end()
            raise

    def renew(self, plan: Plan, given_up: threading.Event, hear: Callable[[str], None]) -> bool:
        """Ready for another render of the same model and layout; not if what it ran on is gone."""
        from ..parallel.errors import ChainBroken

        if not (self._stays and self._is_well):
            return False
        self._take_on(plan, given_up, hear)
        try:
            if not self._placement.is_whole():
                return False
            self._crew.mend()
            self._take_over_worker()
            self._check_files()
        except ChainBroken:
            return False
        return True

    def _take_on(self, plan: Plan, given_up: threading.Event, hear: Callable[[str], None]) -> None:
        from ..parallel.ray_worker import WorkerLost

        self._plan, self._given_up, self._hear = plan, given_up, hear
        self._reason = ""  # why there are no devices to go on with
        self._failures = 0  # of the worker, since the last block
        self._chain: RayChain | None = None
        self._decoder = SteadyDecoder(lambda: self._tiles or self._worker, self._revive, WorkerLost)

    def texts(self, prompts: Sequence[str]) -> Tensor:
        texts_NSD: Tensor = self._ask("texts", prompts)
        return texts_NSD

    def condition(self) -> Condition:
        condition: Condition = self._ask("condition")
        return condition

    def chain(self, sampling: Sampling) -> Chain:
        from ..parallel.ray_chain import ChainParts, RayChain

        parallel = self._plan.config.parallel
        self._chain = RayChain(
            self._devices(),
            ChainParts(
                stage=partial(make_stage, self._plan),
                windows=partial(make_windows, sampling),
                stepper=partial(make_stepper, self._plan, sampling.without_texts()),
                remember=sampling.remember,
            ),
            timeout_s=parallel.transfer_timeout_s,
            link=parallel.link,
            check=self._check,
            repairs=parallel.repairs,
            regroup=self._regroup,
            hear=self._hear,
        )
        return self._chain

    def measured(self) -> Seconds | None:
        """Where the stages are: their device may be none of this machine's."""
        measured: Seconds | None = self._ask("measured")
        return measured

    def expect_decoding(self) -> None:
        (self._tiles or self._worker).start("open_decoder")

    def decode(self, latents_BCTHW: Tensor, keep: bool = False) -> Iterator[Decoded]:
        self._failures = 0  # it comes on
        return self._decoder.decode(latents_BCTHW, keep)

    def restore(self, state: DecoderState, num_frames: int) -> None:
        self._decoder.restore(state, num_frames)

    def busy_s(self) -> list[float]:
        return [] if self._chain is None else self._chain.busy_s

    def close(self) -> None:
        if not (self._stays and self._is_well):
            self.end()

    @property
    def _is_well(self) -> bool:
        """Everything was made and taken, so that nobody is at anything."""
        return self._chain is not None and self._chain.is_well and self._decoder.is_idle

    def end(self) -> None:
        """Every process of it ends."""
        with self._moving:  # who begins a worker has begun it, or will not
            if self._ended:
                return
            self._ended = True
        with ExitStack() as rest:  # all of it, also where the cluster is gone in between
            rest.callback(self._at_end)
            if not self._placement.has_cluster:
                return  # everything went with it, as at the end of this process
            rest.callback(self._placement.remove)
            if hasattr(self, "_crew"):
                rest.callback(self._crew.close)
            if self._tiles is not None:
                rest.callback(self._tiles.close)
            if hasattr(self, "_worker"):
                rest.callback(self._worker.close)

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

        timeout_s = self._plan.config.parallel.transfer_timeout_s
        build = self._build_codec()
        return RayWorker(self._placement, build, self._check, timeout_s, self._tell)

    def _take_over_worker(self) -> None:
        from ..parallel.ray_worker import WorkerLost

        self._wait_for_stages()
        others = self._tiles.leave() if self._tiles else []
        self._tiles = None
        try:
            self._worker.renew(self._build_codec())
            self._tiles = self._begin_tiles(others)
        except WorkerLost as error:
            for other in others:
                other.close()
            error.worker = self._worker  # whichever it was: all begin anew
            self._revive(error)

    def _wait_for_stages(self) -> None:
        """Before several workers begin: Ray gives them one GPU as long as that has room, and of
        stages that come later one would find none."""
        if self._placement.device == "cuda" and len(tile_shares(self._plan)) > 1:
            _ = self._crew.members

    def _begin_tiles(self, others: "Sequence[RayWorker]" = ()) -> "RayTiles | None":
        """Workers beside the first, where several decode the VAE's tiles."""
        from ..parallel.ray_tiles import RayTiles

        if len(shares := tile_shares(self._plan)) < 2:
            for other in others:
                other.close()
            return None
        timeout_s = self._plan.config.parallel.transfer_timeout_s
        build, check = self._build_codec(), self._check
        return RayTiles(self._placement, build, check, self._worker, shares, timeout_s, others)

    def _build_codec(self) -> Callable[[Shelf], object]:
        return partial(make_codec, self._plan, self._placement.device)

    def _devices(self) -> "Devices":
        from ..parallel.ray_chain import Devices

        if self._slices is None:  # as they were loaded, for one render after the other
            self._slices = slices(self._plan, self.measured())
        return Devices(crew=self._crew, slices=self._slices, device=self._placement.device)

    def _check_files(self) -> None:
        if self._plan.config.parallel.address != "local":  # they are there, not here
            self._ask("check")

    def _regroup(self, bear: "Bear") -> "Devices":
        """All anew on the devices that are left, however often some of them are lost meanwhile: any
        number of stages makes the same bits."""
        from ..parallel.crew import NoReplacement

        with self._moving:
            try:
                while True:
                    try:
                        self._move()
                        break
                    except NoReplacement as error:
                        bear(error)
            except Exception as error:
                self._reason = str(error)
                raise
        return self._devices()

    def _move(self) -> None:
        """NoReplacement: what was left is not there any more."""
        from ..parallel.crew import NoReplacement
        from ..parallel.placement import find_fewer

        self._crew.close()
        self._placement.remove()
        parallel = find_fewer(
            self._plan.config.parallel,
            self._placement.device,
            timeout_s=_SETTLE_S,
            check=self._check,
        )
        config = replace(self._plan.config, parallel=parallel)
        self._plan = replace(self._plan, request=replace(self._plan.request, config=config))
        self._stays, self._slices = False, None  # fewer than another render asks for
        try:
            self._placement = self._place()
        except ValueError as error:
            raise NoReplacement(str(error)) from error
        self._crew = self._begin_crew()
        _ = self._crew.members
        self._replace_worker()  # its device was given back as well

    def _ask(self, method: str, *args: object) -> Any:
        """Of the worker, or of the one in its place."""
        from ..parallel.ray_worker import WorkerLost

        while True:
            try:
                return self._worker.call(method, *args)
            except WorkerLost as error:
                self._revive(error)

    def _revive(self, error: "WorkerLost") -> None:
        """Another worker in the place of one that is lost, if that has not happened too often."""
        from ..parallel.errors import ChainBroken

        with self._moving:
            if self._ended:
                raise GivenUp  # nobody would end it
            if self._reason:
                raise ChainBroken(self._reason) from error
            tiles = self._tiles
            if error.worker is not self._worker and not (tiles and tiles.has(error.worker)):
                return  # another thread has waited for it too, and found another one
            self._failures += 1
            if self._failures > self._plan.config.parallel.repairs:
                raise error
            self._hear(f"{error}; another one goes on")
            self._replace_worker()

    def _replace_worker(self) -> None:
        if self._tiles is not None:
            self._tiles.close()
        self._worker.close()
        self._worker = self._begin_worker()
        self._tiles = self._begin_tiles()

    def _tell(self, what: str) -> None:
        self._hear(what)  # of the render that is made now

    def _check(self) -> None:
        check_wanted(self._given_up)
