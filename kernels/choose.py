"""Which implementation runs, and why: the one place that decides."""

import logging
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch

_log = logging.getLogger("longreel")

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Choice:
    """An implementation by name, and the reason in a few words."""

    name: str
    why: str


def installed(module: str) -> bool:
    return find_spec(module) is not None


def choose_dense(device: torch.device, dtype: torch.dtype, channels: int, asked: str) -> Choice:
    """For attention to all keys. ValueError where what is asked for is not there."""
    if asked == "flash-attn":
        _check_flash_attn(device, dtype)
        return Choice("flash-attn", "attention.backend asks for it")
    if asked == "triton":
        _check_triton(device)
        return Choice("triton", "attention.backend asks for it")
    if device.type == "cpu":
        return Choice("cpu-flash", "ATen's kernel, which returns the log-sum-exp")
    older = dtype in _HALF and torch.cuda.get_device_capability(device) < (8, 0)
    if dtype in _HALF and not channels % 8 and not older:
        if channels > 128:
            return Choice("flash", "cuDNN does not take these heads")
        if torch.backends.cudnn.enabled:
            return Choice("cudnn", "on Hopper near FlashAttention 3")
        _say_once(
            "cuDNN is turned off in this process, so attention runs in FlashAttention 2, which is "
            "slower on Hopper; set torch.backends.cudnn.enabled = True"
        )
        return Choice("flash", "cuDNN is turned off in this process")
    lacks = (torch.float64, torch.bfloat16) if older else (torch.float64,)
    if dtype not in lacks and not channels % 8:
        return Choice("efficient", "the fused kernel of torch that takes float32 and older GPUs")
    kind = str(dtype).removeprefix("torch.")
    why = f"no fused kernel takes {kind} with heads of {channels} channels"
    way = "model.dtype=bfloat16, with heads of a multiple of 8"
    if older and dtype == torch.bfloat16:
        why, way = f"{why} on a GPU older than Ampere", "model.dtype=float16 or float32"
    _say_once(
        f"{why}, so attention makes all scores at once, many times slower and in memory that grows "
        f"with the square of a window; set {way}"
    )
    return Choice("definition", why)


def choose_lists(device: torch.device, asked: str) -> Choice:
    """For attention over lists of tiles. ValueError where what is needed is not there."""
    if asked == "flex":
        return Choice("flex", "attention.backend asks for it")
    if asked == "triton":
        _check_triton(device)
        return Choice("triton", "attention.backend asks for it")
    if device.type == "cpu":
        why = "listed keys and values gathered; FlexAttention has no log-sum-exp here"
        return Choice("cpu-gather", why)
    _check_triton(device)
    return Choice("triton", "our kernel")


def choose_fused(device: torch.device) -> Choice:
    """For norms, modulation, gates, rotary positions and lists by score, without a gradient."""
    if device.type == "cpu":
        return Choice("definition", "torch's own operations: fusing pays on GPUs")
    if installed("triton"):
        return Choice("triton", "one read and one write")
    _say_once(
        "Triton is not installed, so norms and modulation run as separate operations, which costs "
        "2 to 4% of a forward; install it with: pip install triton"
    )
    return Choice("definition", "Triton is not installed")


def report() -> list[tuple[str, str]]:
    """What would run here, in lines of (what, which and why)."""
    lines = []
    devices = [torch.device("cpu")]
    devices += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    for device in devices:
        for dtype in (torch.float32, torch.bfloat16):
            kind = str(dtype).removeprefix("torch.")
            lines.append((f"{device}, {kind}, dense", choose_dense(device, dtype, 128, "auto")))
        lines.append((f"{device}, lists", _lists_or_why_not(device)))
        lines.append((f"{device}, norms", choose_fused(device)))
    return [(what, f"{choice.name}: {choice.why}") for what, choice in lines]


def _lists_or_why_not(device: torch.device) -> Choice:
    try:
        return choose_lists(device, "auto")
    except ValueError as error:
        return Choice("none", str(error))


def _check_flash_attn(device: torch.device, dtype: torch.dtype) -> None:
    if not installed("flash_attn"):
        raise ValueError(
            "attention.backend=flash-attn needs the package of that name, which is not installed; "
            "install it beside CUDA with: pip install flash-attn, or set "
            "attention.backend=auto, which takes cuDNN's kernel on Hopper"
        )
    if device.type != "cuda" or dtype not in _HALF:
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"attention.backend=flash-attn runs on a GPU in bfloat16 or float16, and this is "
            f"{kind} on {device.type}; set attention.backend=auto, or model.dtype=bfloat16 on a GPU"
        )


def _check_triton(device: torch.device) -> None:
    if not installed("triton"):
        raise ValueError(
            "attention over lists of tiles needs Triton on a GPU, and it is not installed; install "
            "it with: pip install triton, or set attention.builder=dense"
        )
    if device.type == "cpu":
        from .attention_triton import INTERPRETED

        if not INTERPRETED:
            raise ValueError(
                "attention.backend=triton needs a GPU, and model.device is a CPU; set "
                "attention.backend=auto (TRITON_INTERPRET=1 runs it for tests, a thousand times "
                "slower)"
            )


@cache
def _say_once(message: str) -> None:
    _log.warning(message)
