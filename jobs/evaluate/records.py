"""What was measured of each clip, a JSON object a line, so that an evaluation can be resumed."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .clip import make_clip
from .frechet import features
from .identity import identity_curve
from .measure import Scores, measure
from .settings import Setting, prompt, scene

_FILE, _STRIPS = "scores.jsonl", "strips"
_SHOWN = 8  # frames of a strip


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
    (folder / _STRIPS).mkdir(parents=True, exist_ok=True)
    known = _read(folder / _FILE)
    found = {}
    for setting, number in clips:
        key = hashlib.sha256(setting.identity(number).encode()).hexdigest()[:16]
        if key not in known:
            known[key] = _measure(setting, number, key, folder)
            with (folder / _FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(known[key])) + "\n")
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
    shown = np.linspace(0, len(clip.frames_THWC) - 1, _SHOWN).astype(int)
    Image.fromarray(np.concatenate(clip.frames_THWC[shown], axis=1)).save(
        strip_path(record, folder)
    )
    return record


def _read(path: Path) -> dict[str, Record]:
    """A last line that is cut short, as by a crash, is measured again."""
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    records = [Record(**json.loads(line)) for line in whole.splitlines()]
    return {record.key: record for record in records}
