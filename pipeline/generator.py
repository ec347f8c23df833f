"""From a plan to frames: each part of the model is loaded when its turn comes and let go after it.

B batch, C channels, T latents or frames, H height, W width.
"""

import threading
from collections.abc import Generator as Stream
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..models.vae_state import DecoderState
from ..parallel.chain import Chain, Done, never
from ..parallel.errors import ChainBroken
from ..parallel.snapshot import Snapshot
from ..parallel.stage import Moved
from ..parallel.tasks import WalkState
from .backend import Backend, GivenUp, Open, open_backend
from .checkpoint import Checkpoint, Keep, Keeper
from .codec import Decoded
from .condition import Condition
from .errors import RenderError
from .guidance import GuidancePlan, plan_guidance
from .in_order import InOrder
from .noise_pool import NoisePool
from .overlap import Begun, run_ahead
from .parts import check_parts
from .plan import Plan, check_prompt
from .surroundings import Surroundings
from .tally import Tally
from .windows import Sampling

_NONE: Mapping[int, str] = MappingProxyType({})
_LOOK_S = 0.1  # how soon a wait notices that the render was given up


class Report(Protocol):
    """Hears what is being done, how much of it, of how much (0: without an end), and a remark."""

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None: ...


def quiet(what: str, done: int, total: int, note: str = "") -> None:
    pass


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Frames that have just become final."""

    block: int
    start: int  # number of its first frame in the video
    frames: npt.NDArray[np.uint8]  # n x height x width x 3
    latents_BCTHW: Tensor  # clean ones, of the whole block


class Generator:
    """Renders one plan."""

    def __init__(
        self,
        plan: Plan,
        report: Report = quiet,
        open_backend: Open = open_backend,
        *,
        start: Checkpoint | None = None,
        keep: Keep | None = None,
        prompts: Mapping[int, str] = _NONE,
        limit: int | None = None,
        seen: int = 0,
        around: Surroundings | None = None,
    ) -> None:
        """`start`: go on from there, or begin there with a section, which `around` is beside.
        `keep` is handed a checkpoint now and then, and returns soon.

        What it is handed may be saved in any other thread: nothing in it is written into.
        `prompts` and `limit` are what `set_prompt` and `stop` were told and gave before, and blocks
        before `seen` had begun by then."""
        if plan.config.parallel.address == "local":  # elsewhere the files are the cluster's
            check_parts(plan)
        self._plan = plan
        self._report = report
        self._open_backend = open_backend
        self._backend: Backend | None = None
        self._chain: Chain | None = None
        self._given_up = threading.Event()
        self._start = start
        if start:
            begun = start.chain.walk.next_block
            seen = max(seen, begun, start.decoded, *(block + 1 for block in start.clean))
        self._telling = threading.Lock()
        self._has_begun = False
        self.is_over = False  # whatever has ended it
        self._maker = 0  # thread that makes the chain
        self._ready = threading.Event()  # there is a chain, or there will be none
        self._prompts = dict(sorted({**plan.prompts, **prompts}.items()))
        self._limit, self.seen = limit, seen  # blocks before it have begun
        self.is_decoding = False
        self._around = around
        self._keeper = Keeper(plan.config.checkpoint.every_s, keep, start)
        self._cuts = plan.cuts

    def latents(self) -> Tensor:
        """The clean latents, normalised: (1, C, T, H, W) float32."""
        with closing(self.blocks()) as blocks:
            return torch.cat([block.latents_BCTHW for block in blocks], dim=2)

    def blocks(self) -> Stream[Moved]:
        """Clean blocks in order, each as soon as its last step is done."""
        with (
            _broken_ends_render(),
            self._begun() as backend,
            closing(self._begin_chain(backend)) as steps,
        ):
            yield from self._denoise(steps)

    def chunks(self) -> Stream[Chunk]:
        """Frames in order, decoded while later blocks are still being made."""
        total = self._last_frame()
        start = self._start.frames if self._start else 0
        with (
            _broken_ends_render(),
            self._begun() as backend,
            closing(
                run_ahead(self._decode(backend), most=1, on_close=self._given_up.set)
            ) as blocks,
        ):
            for moved, arrays in blocks:
                latents_BCTHW = moved.latents_BCTHW.clone()  # the reader's: later blocks read those
                for decoded in self._decoding(arrays):
                    if isinstance(decoded, DecoderState):
                        self._keeper.add_decoder(moved.block, start, decoded)
                        continue
                    yield Chunk(
                        block=moved.block,
                        start=start,
                        frames=decoded,
                        latents_BCTHW=latents_BCTHW,
                    )
                    start += len(decoded)
                    self._report("decode", start, total)

    def set_prompt(self, prompt: str) -> int:
        """Another prompt for the blocks that are yet to begin, the first of which is returned.

        From any thread; while the model is being loaded, it waits for that.
        """
        check_prompt(prompt)
        with self._telling:
            if not self._has_begun:
                self._prompts[self.seen] = prompt
                return self.seen
        chain = self._wait_for_chain()
        if self.is_over:
            raise ValueError("the render is over, so no block is left for another prompt")
        assert self._backend is not None
        with _given_up_is_over():
            return chain.change_text(self._texts(self._backend, [prompt])[0])

    def stop(self) -> int:
        """Begin no more blocks but the first; those in flight are finished. How many in all. As
        `set_prompt`."""
        with self._telling:
            if not self._has_begun:
                self._limit = max(self.seen, 1)
                return self._limit
        chain = self._wait_for_chain()
        with _given_up_is_over():
            return max(self.seen, chain.stop(), 1)

    @property
    def is_loaded(self) -> bool:
        """What it is told now is heard at once."""
        return self._ready.is_set() and (self._chain is None or self._chain.is_loaded)

    def busy_s(self) -> list[float]:
        """Seconds that each stage has worked in this go; a moment old."""
        return [] if self._backend is None else self._backend.busy_s()

    def give_up(self) -> None:
        """End within moments, with nothing more; from any thread, also before it has begun."""
        self._given_up.set()

    @contextmanager
    def _begun(self) -> Iterator[Backend]:
        with self._telling:
            self._has_begun = True
        try:
            with closing(self._open_backend(self._plan, self._given_up)) as backend:
                self._backend = backend
                yield backend
        finally:
            self.is_over = True
            self._ready.set()

    def _begin_chain(self, backend: Backend) -> Stream[Done | Snapshot]:
        """Its steps; it knows where it begins before anybody can tell it anything."""
        self._maker = threading.get_ident()
        chain = backend.chain(self.sampling(backend))
        held, wants = self._start.chain if self._start else None, self._keeper.wants_chain
        if self._plan.config.attention.keeps_state:  # which is in no snapshot
            wants = never
        steps = chain.run(self._plan.schedule, held, self._limit, wants, self.seen)
        self._chain = chain
        self._ready.set()
        return steps

    def _wait_for_chain(self) -> Chain:
        if self._maker == threading.get_ident() and not self.is_loaded:
            raise ValueError(
                "the model is being loaded by the thread that tells, which would wait for itself; "
                "tell the render before it begins, from another thread, or once it has a frame"
            )
        while not self._ready.wait(_LOOK_S):
            if self._given_up.is_set():
                break
        if self._chain is None:
            raise ValueError("the render has ended before it began, so nothing can be told to it")
        return self._chain

    def _denoise(self, steps: Iterator[Done | Snapshot]) -> Stream[Moved]:
        schedule, start = self._plan.schedule, self._start
        total = (schedule.num_blocks or 0) * schedule.steps  # each block takes each of them once
        tally = Tally(start.chain.walk if start else WalkState(), schedule.steps)
        out = InOrder(schedule.steps)
        self._report("denoise", tally.taken, total)
        if start:
            yield from out.resume(start.decoded, start.clean)
        for one in steps:
            if self._given_up.is_set():
                return
            if isinstance(one, Snapshot):
                self._keeper.add_chain(one)
                continue
            tally.add(one)
            self.seen = max(self.seen, *(block + 1 for block in one.task.admits), 0)
            for moved in one.finished:
                self._keeper.add_clean(moved.block, moved.latents_BCTHW)
            self._report("denoise", tally.taken, total, tally.note)
            yield from out.add(one.finished)

    def _decoding(self, arrays: Iterator[Decoded]) -> Iterator[Decoded]:
        """The same; `is_decoding` says whose fault an error is."""
        self.is_decoding = True
        for decoded in arrays:
            self.is_decoding = False
            yield decoded
            self.is_decoding = True
        self.is_decoding = False

    def _decode(self, backend: Backend) -> Stream[tuple[Moved, Iterator[Decoded]]]:
        """Every block with its frames, which a worker of its own, if there is one, begins on."""
        around = self._around
        if self._start and self._start.decoder:
            backend.restore(self._start.decoder, self._start.frames)
        elif around and around.lead_BCTHW is not None:
            for _ in backend.decode(around.lead_BCTHW):  # for the state that it leaves
                if self._given_up.is_set():
                    return
        chain = self._begin_chain(backend)
        clean = self._start.clean if self._start else {}  # are decoded while it begins
        steps: Stream[Done | Snapshot] | Begun[Done | Snapshot] = Begun(chain) if clean else chain
        with closing(steps), closing(self._denoise(steps)) as blocks:
            backend.expect_decoding()
            for block in blocks:
                number = block.block
                keep = self._cuts.ends(number) and self._keeper.wants_decoder(number)
                yield block, backend.decode(block.latents_BCTHW, keep)
        if around and around.tail_BCTHW is not None and not self._given_up.is_set():
            schedule, tail_BCTHW = self._plan.schedule, around.tail_BCTHW
            assert schedule.num_blocks is not None
            tail = Moved(block=schedule.num_blocks, step=schedule.steps, latents_BCTHW=tail_BCTHW)
            yield tail, backend.decode(tail_BCTHW)

    def _last_frame(self) -> int:
        """The one after it, of what is made and what is decoded anew; 0: there is no end."""
        schedule, stride = self._plan.schedule, self._plan.arch.vae.time_stride
        if schedule.num_blocks is None:
            return 0
        tail_BCTHW = self._around.tail_BCTHW if self._around else None
        behind = 0 if tail_BCTHW is None else tail_BCTHW.shape[2] * stride
        return self._cuts.stop_frame(schedule.num_blocks - 1) + behind

    def sampling(self, backend: Backend) -> Sampling:
        plan, levels = self._plan, self._plan.levels
        channels, _, height, width = plan.latents_shape
        guided = self._guidance.guided
        texts_BSD = self._texts(
            backend, [*self._prompts.values(), *[plan.config.sampling.negative_prompt] * guided]
        )
        negative_BSD = texts_BSD.pop() if guided else None
        return Sampling(
            seed=plan.seed,
            frame_shape=(channels, height, width),
            schedule=plan.schedule,
            levels=levels,
            guidance=self._guidance,
            boundary=plan.config.model.boundary,
            pool=NoisePool(plan.seed, plan.schedule) if plan.shares_noise else None,
            texts=dict(zip(self._prompts, texts_BSD, strict=True)),
            negative_BSD=negative_BSD,
            condition=backend.condition() if plan.pictures else Condition(),
            causal_latents=plan.causal_latents,
            fps=plan.config.video.fps,
            prefix_level=plan.config.blocks.prefix_level,
            device=torch.device("cpu"),  # until an end of the chain takes it to its own
        )

    def _texts(self, backend: Backend, words: Sequence[str]) -> list[Tensor]:
        """Embedded; each in memory of its own, as views travel with all that they are views of."""
        self._report("prompt", 0, 1)
        texts_NSD = backend.texts(words)
        self._report("prompt", 1, 1)
        return [text_BSD.clone() for text_BSD in torch.split(texts_NSD, 1)]

    @cached_property
    def _guidance(self) -> GuidancePlan:
        plan = self._plan
        return plan_guidance(plan.config.sampling, plan.levels, plan.config.model.boundary)


@contextmanager
def _given_up_is_over() -> Iterator[None]:
    try:
        yield
    except GivenUp:  # by somebody else than who tells
        raise ValueError("the render is over, so nothing can be told to it") from None


@contextmanager
def _broken_ends_render() -> Iterator[None]:
    try:
        yield
    except GivenUp:
        pass  # by `give_up`, or by closing: whoever did it knows
    except ChainBroken as error:
        raise RenderError(str(error)) from error
