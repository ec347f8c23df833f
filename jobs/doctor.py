"""What this machine has for a render, and what would run on it: `longreel doctor`."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("torch", "triton", "flash-attn", "diffusers", "transformers", "ray")
_CPU = Path("/proc/cpuinfo")  # Linux


def describe_machine() -> list[tuple[str, str]]:
    """Lines of (what, which)."""
    import torch

    from ..kernels.choose import report

    lines = [("python", platform.python_version())]
    lines += [(name, _version(name)) for name in _PACKAGES]
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        lines.append((f"cuda:{i}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"))
    if not torch.cuda.device_count():
        lines.append(("cuda", "no device"))
    lines.append(("cpu, bfloat16", _bfloat16(_CPU.read_text() if _CPU.is_file() else "")))
    return lines + report()


def _bfloat16(cpu: str) -> str:
    """What the flags of a CPU say of its arithmetic in that type."""
    if not cpu:
        return "not known here: compare model.dtype=bfloat16 with float32"
    flags = set(cpu.split())
    if "amx_bf16" in flags:
        return "in tiles (AMX): set model.dtype=bfloat16 and model.vae_dtype=bfloat16 to be faster"
    if "avx512_bf16" in flags or "bf16" in flags:
        return "in vectors: compare model.dtype=bfloat16 with float32"
    return "not in hardware: keep model.dtype=float32"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
