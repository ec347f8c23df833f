"""What was measured of each clip, a JSON object a line, so that an evaluation can be resumed."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .clip import make_clip
from .frechet import features
from .identity import identity_curve
from .measure import IDEALS, Scores, measure
from .settings import Setting, prompt, scene

_log = logging.getLogger("longreel")

_FILE, _STRIPS = "scores.jsonl", "strips"
SHOWN = 8  # frames of a strip


@dataclass(frozen=True, kw_only=True)
class Record:
    """One clip."""

    key: str  # a digest of all it depends on
    setting: str
    number: int
    prompt: str
    first_frame_s: float
    total_s: float
    scores: Scores
    identity_curve: list[float | None]
    features: list[list[float]]


Records = dict[tuple[str, int], Record]


def evaluate(
    clips: Iterable[tuple[Setting, int]], folder: Path, report: Callable[[Record], None]
) -> Records:
    """Measure what the folder does not hold yet. Each clip is written down as it is done."""
    try:
        (folder / _STRIPS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--output={folder} cannot be made a folder ({error.strerror}), so no score would be "
            "kept; name another"
        ) from None
    known = _read(folder / _FILE)
    found = {}
    for setting, number in clips:
        key = hashlib.sha256(setting.identity(number).encode()).hexdigest()[:16]
        if key not in known:
            known[key] = _measure(setting, number, key, folder)
            _append(folder / _FILE, known[key])
            report(known[key])
        found[setting.name, number] = known[key]
    return found


def strip_path(record: Record, folder: Path) -> Path:
    """Frames of the clip side by side."""
    return folder / _STRIPS / f"{record.key}.png"


def _measure(setting: Setting, number: int, key: str, folder: Path) -> Record:
    clip = make_clip(setting, number)
    scores, tracked = measure(clip.frames_THWC, scene(number), clip.borders)
    record = Record(
        key=key,
        setting=setting.name,
        number=number,
        prompt=prompt(number),
        first_frame_s=clip.first_frame_s,
        total_s=clip.total_s,
        scores=scores,
        identity_curve=identity_curve(tracked),
        features=[[round(float(x), 5) for x in row] for row in features(clip.frames_THWC)],
    )
    shown = np.linspace(0, len(clip.frames_THWC) - 1, SHOWN).astype(int)
    Image.fromarray(np.concatenate(clip.frames_THWC[shown], axis=1)).save(
        strip_path(record, folder)
    )
    return record


def _append(path: Path, record: Record) -> None:
    """In one write, so that several evaluations may share a folder."""
    with path.open("a+b", buffering=2**20) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        cut = file.read(1) not in (b"", b"\n")  # a crash left half a line
        file.write(b"\n" * cut + json.dumps(asdict(record)).encode() + b"\n")


def _read(path: Path) -> dict[str, Record]:
    """Clips of lines that cannot be read, as a crash or another version leaves them, are measured
    again."""
    records = {}
    lines = path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            record = Record(**json.loads(line))
            if record.scores.keys() != IDEALS.keys():
                raise ValueError("other scores")
        except (ValueError, TypeError, AttributeError) as error:
            _log.warning(
                "%s, line %d is left out (%s): its clip is measured again", path, number, error
            )
        else:
            records[record.key] = record
    return records
