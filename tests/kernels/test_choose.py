"""What is chosen, and what is said where something asked for is not there."""

import logging
import re

import pytest
import torch

from longreel.kernels import choose
from longreel.kernels.choose import (
    choose_dense,
    choose_fused,
    choose_lists,
    report,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def without(monkeypatch):
    def hide(*modules):
        monkeypatch.setattr(choose, "installed", lambda module: module not in modules)

    return hide


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def test_a_cpu_has_kernels_of_its_own():
    assert choose_dense(CPU, torch.float32, 128, "auto").name == "cpu-flash"
    assert choose_lists(CPU, "auto").name == "cpu-gather"
    assert choose_fused(CPU).name == "definition"


@pytest.mark.parametrize(
    ("dtype", "channels", "name"),
    [
        (torch.bfloat16, 128, "cudnn"),
        (torch.bfloat16, 256, "flash"),
        (torch.float32, 128, "efficient"),
        (torch.float32, 20, "definition"),
        (torch.float64, 128, "definition"),
    ],
)
def test_hopper_has_cudnns_for_the_models_and_others_where_that_does_not_fit(
    hopper, dtype, channels, name
):
    assert choose_dense(CUDA, dtype, channels, "auto").name == name


@pytest.mark.parametrize(
    ("dtype", "channels", "cudnn", "said"),
    [
        (torch.bfloat16, 128, False, ["cuDNN is turned off"]),
        (
            torch.float64,
            128,
            True,
            ["takes float64 with heads of 128 channels, so .*; set model.d"],
        ),
        (torch.bfloat16, 256, True, []),
    ],
)
def test_what_is_slower_than_it_could_be_is_said_once(
    hopper, monkeypatch, caplog, dtype, channels, cudnn, said
):
    choose._say_once.cache_clear()
    monkeypatch.setattr(torch.backends.cudnn, "enabled", cudnn)
    with caplog.at_level(logging.WARNING, "longreel"):
        whys = [choose_dense(CUDA, dtype, channels, "auto").why for _ in range(2)]
    assert len(caplog.records) == len(said)
    for record, pattern in zip(caplog.records, said, strict=True):
        assert re.search(pattern, record.message)
        assert record.message.startswith(whys[0])


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float32, "efficient"), (torch.float16, "efficient"), (torch.bfloat16, "definition")],
)
def test_a_gpu_older_than_ampere_has_no_fused_kernel_for_bfloat16(monkeypatch, caplog, dtype, name):
    """torch's dispatch_cutlassF has it from compute capability 8.0 on, and launches none before."""
    choose._say_once.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with caplog.at_level(logging.WARNING, "longreel"):
        assert choose_dense(CUDA, dtype, 128, "auto").name == name
    slow = ["set model.dtype=float16 or float32"] * (name == "definition")
    assert [record.message[-len(slow[0]) :] for record in caplog.records] == slow


def test_flash_attn_asked_for_and_absent_is_an_error_with_the_way_out(without):
    without("flash_attn")
    with pytest.raises(ValueError, match=r"attention.backend=flash-attn .* pip install flash-attn"):
        choose_dense(CUDA, torch.bfloat16, 128, "flash-attn")


def test_flash_attn_asked_for_where_it_does_not_run(without):
    without()
    with pytest.raises(ValueError, match=r"this is float32 on cpu; set attention.backend=auto"):
        choose_dense(CPU, torch.float32, 128, "flash-attn")


@pytest.mark.parametrize("asked", ["auto", "triton"])
def test_lists_on_a_gpu_without_triton_are_an_error_with_the_way_out(without, asked):
    without("triton")
    with pytest.raises(ValueError, match=r"pip install triton, or set attention.builder=dense"):
        choose_lists(CUDA, asked)


def test_norms_on_a_gpu_without_triton_go_on_and_say_so_once(without, caplog):
    choose._say_once.cache_clear()
    without("triton")
    with caplog.at_level(logging.WARNING, "longreel"):
        assert choose_fused(CUDA).name == "definition"
        choose_fused(CUDA)
    assert [r.message for r in caplog.records if "pip install triton" in r.message] == [
        caplog.records[0].message
    ]


def test_the_report_names_every_choice_and_its_reason():
    lines = dict(report())
    assert lines["cpu, float32, dense"].startswith("cpu-flash: ")
    assert lines["cpu, lists"].startswith("cpu-gather: ")
