"""What this machine has for a render, and what would run on it: `longreel doctor`."""

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("torch", "triton", "flash-attn", "diffusers", "transformers", "ray")


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
    return lines + report()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
