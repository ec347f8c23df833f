"""What stages say to each other: each message says what it carries, and of which render and epoch.

B batch, L tokens, D width, S text tokens, N image tokens, R distinct levels, F runs of tokens,
C channels, T latents, H height, W width.
"""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.protocol import DiTState, Modulation, WindowShape
from .link import Message
from .stage import Activation, Inputs, Moved
from .tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """Which render, and which life of its chain."""

    render: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """Nothing to do, and well: said while the consumer keeps a chain waiting."""

    stamp: Stamp


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """There will be no more tasks."""

    stamp: Stamp


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Between two ticks: note what you hold."""

    stamp: Stamp
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """To the unconditional branch: this task is not guided."""

    stamp: Stamp
    task: Task


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """A DiTState without its tensors."""

    window: WindowShape
    has_index: bool
    has_image: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationHeader:
    stamp: Stamp
    task: Task
    expert: int
    passing: int
    is_last: bool
    state: _State


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedHeader:
    stamp: Stamp
    task: int
    versions: tuple[tuple[int, int], ...]  # block, step


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowHeader:
    """A window: to the unconditional branch, or to another device of the first stage."""

    stamp: Stamp
    task: Task
    timesteps: tuple[tuple[float, ...], ...]  # here, as they stay on the host
    num_texts: int
    has_image: bool
    expert: int
    causal_latents: int
    fps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionHeader:
    """The unconditional branch's velocity; without a tensor where none is wanted."""

    stamp: Stamp
    task: int


Note = Idle | End | Mark | Skip
Header = Note | ActivationHeader | MovedHeader | WindowHeader | PredictionHeader


def read_header(message: Message, stamp: Stamp) -> Header:
    """What came; it must be of this render and epoch."""
    header: Header = pickle.loads(message.header)
    assert header.stamp == stamp, f"{header.stamp} came over a link of {stamp}"
    return header


def pack_note(note: Note) -> Message:
    return Message(pickle.dumps(note))


def pack_activation(stamp: Stamp, task: Task, x: Activation) -> Message:
    state, modulation = x.state, x.state.modulation
    header = ActivationHeader(
        stamp=stamp,
        task=task,
        expert=x.expert,
        passing=x.passing,
        is_last=x.is_last,
        state=_State(
            window=state.window,
            has_index=modulation.index_BF is not None,
            has_image=state.image_BND is not None,
        ),
    )
    tensors = [state.tokens_BLD, modulation.embedding_RD, modulation.rows_R6D, state.text_BSD]
    tensors += [t for t in (modulation.index_BF, state.image_BND) if t is not None]
    return Message(pickle.dumps(header), tuple(tensors))


def unpack_activation(
    header: ActivationHeader, tensors: Sequence[Tensor], device: torch.device
) -> Activation:
    return Activation(
        state=_unpack_state(header.state, (tensor.to(device) for tensor in tensors)),
        passing=header.passing,
        is_last=header.is_last,
        expert=header.expert,
    )


def _unpack_state(state: _State, tensors: Iterator[Tensor]) -> DiTState:
    tokens_BLD, embedding_RD, rows_R6D, text_BSD = (next(tensors) for _ in range(4))
    index_BF = next(tensors) if state.has_index else None
    image_BND = next(tensors) if state.has_image else None
    return DiTState(
        tokens_BLD=tokens_BLD,
        modulation=Modulation(embedding_RD=embedding_RD, rows_R6D=rows_R6D, index_BF=index_BF),
        text_BSD=text_BSD,
        image_BND=image_BND,
        window=state.window,
    )


def pack_moved(stamp: Stamp, task: Task, moved: Sequence[Moved]) -> Message:
    """Every version that a task has made; none for a task that makes none."""
    versions = tuple((m.block, m.step) for m in moved)
    header = MovedHeader(stamp=stamp, task=task.number, versions=versions)
    return Message(pickle.dumps(header), tuple(m.latents_BCTHW for m in moved))


def unpack_moved(
    header: MovedHeader, tensors: Sequence[Tensor], device: torch.device
) -> list[Moved]:
    return [
        Moved(block=block, step=step, latents_BCTHW=tensor.to(device))
        for (block, step), tensor in zip(header.versions, tensors, strict=True)
    ]


def pack_window(stamp: Stamp, task: Task, inputs: Inputs) -> Message:
    image_BND = inputs.image_BND
    header = WindowHeader(
        stamp=stamp,
        task=task,
        timesteps=tuple(tuple(row) for row in inputs.timesteps_BT.tolist()),
        num_texts=len(inputs.texts_BSD),
        has_image=image_BND is not None,
        expert=inputs.expert,
        causal_latents=inputs.causal_latents,
        fps=inputs.fps,
    )
    image = () if image_BND is None else (image_BND,)
    tensors = inputs.latents_BCTHW, *inputs.texts_BSD, *image
    return Message(pickle.dumps(header), tensors)


def unpack_window(header: WindowHeader, tensors: Sequence[Tensor], device: torch.device) -> Inputs:
    rest = (tensor.to(device) for tensor in tensors)
    return Inputs(
        latents_BCTHW=next(rest),
        timesteps_BT=torch.tensor(header.timesteps, dtype=torch.float64),
        texts_BSD=tuple(next(rest) for _ in range(header.num_texts)),
        image_BND=next(rest) if header.has_image else None,
        expert=header.expert,
        causal_latents=header.causal_latents,
        fps=header.fps,
    )


def pack_prediction(stamp: Stamp, task: int, velocities_BCTHW: Sequence[Tensor]) -> Message:
    header = PredictionHeader(stamp=stamp, task=task)
    return Message(pickle.dumps(header), tuple(velocities_BCTHW))
