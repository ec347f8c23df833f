"""Measured times of a model on disk, by window and device: `longreel simulate --calibrate` leaves
them for renders.

Nothing here fails a render: what cannot be read is passed over, what cannot be written is logged.
"""

import hashlib
import json
import logging
import math
import platform
import uuid
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..configs.files import expand
from ..configs.schema import Config
from .cost import Seconds
from .kinds import commonest_task
from .schedule import BlockSchedule

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("longreel")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What was measured: another value of any field is another measurement."""

    arch: str
    height: int
    width: int
    latents: int  # of the window's own
    context: int  # that it reads from a cache
    dtype: str
    device: str
    torch: str


def make_case(config: Config, schedule: BlockSchedule, device: "torch.device") -> Case:
    task = commonest_task(schedule)
    return Case(
        arch=config.model.arch,
        height=config.video.height,
        width=config.video.width,
        latents=task.num_latents,
        context=task.num_cached,
        dtype=config.model.dtype,
        device=_name(device),
        torch=_torch_version(),
    )


def keep(folder: str, case: Case, seconds: Seconds) -> Path | None:
    """Where it was written; none: it could not be, and was logged."""
    path = _path(folder, case)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    text = json.dumps({"case": asdict(case), "seconds": asdict(seconds)}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)  # renders see whole files only
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("calibration %s cannot be written, so it is not kept: %s", path, error)
        return None
    return path


def find(folder: str, case: Case) -> Seconds | None:
    """What was measured of just this case, if anything was and can be read."""
    path = _path(folder, case)
    try:
        return _read(json.loads(path.read_text(encoding="utf-8")), case)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning(
            "calibration %s cannot be used (%s), so layers are split by an estimate; remove it, "
            "or measure again with longreel simulate --calibrate",
            path,
            error,
        )
        return None


def _read(held: Any, case: Case) -> Seconds:
    """ValueError: not what `keep` wrote for this case."""
    if not isinstance(held, dict) or held.get("case") != asdict(case):
        raise ValueError("it is of another model, window or device")
    seconds, names = held.get("seconds"), [field.name for field in fields(Seconds)]
    if not isinstance(seconds, dict) or sorted(seconds) != sorted(names):
        raise ValueError("it has other fields")
    for name, value in seconds.items():
        if not isinstance(value, float | int) or not 0 <= value < math.inf:
            raise ValueError(f"{name}={value} is no time")
    if not seconds["token"]:
        raise ValueError("a layer that takes no time was not measured")
    return Seconds(**seconds)


def _path(folder: str, case: Case) -> Path:
    key = hashlib.sha256(json.dumps(asdict(case)).encode()).hexdigest()[:16]
    return expand(folder) / f"{case.arch}-{key}.json"


def _name(device: "torch.device") -> str:
    """Devices of one name are equally fast."""
    if device.type != "cuda":
        return f"{device.type} {platform.machine()}"
    import torch

    return torch.cuda.get_device_name(device)


def _torch_version() -> str:
    import torch

    return torch.__version__
