"""A want of memory is one, whoever says so."""

import numpy as np
import pytest
import torch
from ray.exceptions import OutOfMemoryError, RayTaskError

from longreel.configs.errors import first_line, is_memory


def _of_a_cpu():
    torch.empty(2**50)


def _of_an_array():
    np.empty(2**50)


@pytest.mark.parametrize("ask", [_of_a_cpu, _of_an_array])
def test_what_no_memory_holds(ask):
    with pytest.raises((RuntimeError, MemoryError)) as said:
        ask()
    assert is_memory(said.value)
    assert not is_memory(ValueError(first_line(said.value)[:10]))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_it_is_known_behind_an_actor(error):
    assert is_memory(RayTaskError("run", "Traceback", error).as_instanceof_cause())
    assert is_memory(OutOfMemoryError("the node"))
    assert not is_memory(RayTaskError("run", "Traceback", KeyError("a")).as_instanceof_cause())


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in the documentation",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
    ],
)
def test_a_gpu_says_it_in_words_where_it_is_not_torchs_allocator(said):
    """What asks the driver for memory of its own, on a GPU that is nearly full."""
    error = torch.AcceleratorError(said) if "error: out" in said else RuntimeError(said)
    assert is_memory(error)
    assert is_memory(RayTaskError("run", f"Traceback\n{said}", error).as_instanceof_cause())
    assert not is_memory(torch.AcceleratorError("CUDA error: an illegal memory access"))
