"""What goes through a message comes out of it bit for bit."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from longreel.models.protocol import DiTState, Modulation, WindowShape
from longreel.parallel.link import Message
from longreel.parallel.messages import (
    End,
    Idle,
    Skip,
    Stamp,
    pack_activation,
    pack_moved,
    pack_note,
    pack_prediction,
    pack_window,
    read_header,
    unpack_activation,
    unpack_moved,
    unpack_window,
)
from longreel.parallel.stage import Activation, Inputs, Moved
from longreel.parallel.tasks import Entry, Part, Task

STAMP = Stamp(render="r", epoch=3)
CPU = torch.device("cpu")
TASK = Task(
    number=7,
    tick=2,
    parts=(Part(block=1, start=3, stop=6, step=4, write=True),),
    reads=(Entry(block=2, step=4, start=6, stop=8),),
    positions=(3, 4, 5),
)


def make_state(dtype, *, with_index, with_image):
    return DiTState(
        tokens_BLD=torch.randn(2, 5, 4).to(dtype),
        modulation=Modulation(
            embedding_RD=torch.randn(3, 4),
            rows_R6D=torch.randn(3, 6, 4),
            index_BF=torch.tensor([[0, 1, 2]]) if with_index else None,
        ),
        text_BSD=torch.randn(1, 3, 4).to(dtype).expand(2, -1, -1),  # a view
        image_BND=torch.randn(2, 1, 4).to(dtype) if with_image else None,
        window=WindowShape(
            times=(3, 4, 5), context_times=(6, 7), height=1, width=1, causal_latents=0
        ),
    )


def assert_same(ours, expected):
    """Equal, and every tensor of the same type and the same bits."""
    assert type(ours) is type(expected)
    if isinstance(expected, Tensor):
        assert ours.dtype == expected.dtype
        assert torch.equal(ours, expected)
    elif isinstance(expected, tuple):
        for one, other in zip(ours, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, DiTState | Modulation | Activation | Inputs | Moved):
        for field in fields(expected):
            assert_same(getattr(ours, field.name), getattr(expected, field.name))
    else:
        assert ours == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("passing", [0, 1])
def test_an_activation_comes_out_as_it_went_in(dtype, passing):
    state = make_state(dtype, with_index=passing == 0, with_image=passing == 1)
    x = Activation(state=state, passing=passing, is_last=passing == 1, expert=1)
    message = pack_activation(STAMP, TASK, x)
    header = read_header(message, STAMP)
    assert header.task == TASK
    assert_same(unpack_activation(header, message.tensors, CPU), x)


def test_the_header_is_small_and_holds_no_tensor():
    state = make_state(torch.float32, with_index=True, with_image=True)
    x = Activation(state=state, passing=0, is_last=True, expert=0)
    assert len(pack_activation(STAMP, TASK, x).header) < 2000


@pytest.mark.parametrize("count", [0, 1, 3])
def test_versions_come_out_as_they_went_in(count):
    moved = [
        Moved(block=4 + i, step=9, latents_BCTHW=torch.randn(1, 2, 3, 1, 1 + i))
        for i in range(count)
    ]
    message = pack_moved(STAMP, TASK, moved)
    header = read_header(message, STAMP)
    assert header.task == TASK.number
    assert_same(tuple(unpack_moved(header, message.tensors, CPU)), tuple(moved))


@pytest.mark.parametrize("with_image", [False, True])
@pytest.mark.parametrize("levels", [1, 3])
def test_a_window_comes_out_as_it_went_in(with_image, levels):
    window = Inputs(
        latents_BCTHW=torch.randn(1, 2, 3, 1, 2)[:, :, 1:],  # a view
        timesteps_BT=torch.rand(1, levels, dtype=torch.float64) * 1000,
        texts_BSD=(torch.randn(1, 3, 4).bfloat16(),),
        image_BND=torch.randn(1, 2, 4) if with_image else None,
        expert=1,
        causal_latents=3,
        fps=24,
    )
    message = pack_window(STAMP, TASK, window)
    header = read_header(message, STAMP)
    assert header.task == TASK
    assert_same(unpack_window(header, message.tensors, CPU), window)


def test_predictions_and_skips_name_their_task():
    velocity_BCTHW = torch.randn(1, 2, 3, 1, 2)
    message = pack_prediction(STAMP, 7, (velocity_BCTHW,))
    assert read_header(message, STAMP).task == 7
    assert torch.equal(*message.tensors, velocity_BCTHW)
    skip = Skip(stamp=STAMP, task=TASK)
    assert read_header(pack_note(skip), STAMP) == skip


@pytest.mark.parametrize("kind", [Idle, End])
def test_notes_say_what_they_are(kind):
    message = pack_note(kind(stamp=STAMP))
    assert message == Message(message.header, ())
    assert read_header(message, STAMP) == kind(stamp=STAMP)


@pytest.mark.parametrize("other", [replace(STAMP, epoch=2), replace(STAMP, render="another")])
def test_what_another_epoch_or_render_has_sent_is_refused(other):
    with pytest.raises(AssertionError, match="came over a link of"):
        read_header(pack_moved(other, TASK, []), STAMP)
