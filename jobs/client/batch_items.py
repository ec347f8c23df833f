"""What a batch is made of: prompts in a list, or in a CSV or JSON-lines file."""

import csv
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...configs.files import expand

_NUMBERS: dict[str, Any] = {"frames": int, "seed": int, "priority": int, "deadline_s": float}
_TEXTS = {"prompt": str, "preset": str, "image": str | Path, "name": str | int}
_NAME_BYTES = 250  # with its suffix as long as file systems take
_ANY = ("settings", "prompt_at")  # not in a CSV


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One video of a batch."""

    name: str  # of its file, without suffix
    prompt: str
    more: Mapping[str, Any] = field(default_factory=dict)  # as `Client.render` takes it


def read_items(items: str | Path | Sequence[str | Mapping[str, object]]) -> list[Asked]:
    """ValueError names the line that is wrong, before anything is asked of a server."""
    rows = _read_file(Path(items)) if isinstance(items, str | Path) else [*items]
    asked: list[Asked] = []
    for number, row in enumerate(rows, start=1):
        try:
            values = {"prompt": row} if isinstance(row, str) else _fields("the item", row)
            asked.append(_item(number, values))
        except ValueError as error:
            raise ValueError(f"item {number} of the batch: {error}") from error
    names = Counter(item.name for item in asked)
    if twice := sorted(name for name, count in names.items() if count > 1):
        raise ValueError(
            f"name={twice[0]} is given to several items of the batch, which would write over each "
            "other; give each its own, or none"
        )
    if not asked:
        raise ValueError("the batch is empty, so there is nothing to render; give it prompts")
    return asked


def _read_file(path: Path) -> list[Mapping[str, object]]:
    if (kind := path.suffix.lower()) not in (".csv", ".jsonl"):
        raise ValueError(
            f"batch={path} is neither .csv nor .jsonl, so its form is unknown; name it so"
        )
    try:
        with expand(path).open(encoding="utf-8-sig", newline="") as file:
            if kind == ".jsonl":
                return [json.loads(line) for line in file if line.strip()]
            rows = csv.DictReader(file)
            return [{k: v for k, v in row.items() if v not in ("", None)} for row in rows]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(
            f"batch={path} cannot be read ({error}); give a CSV file with a column `prompt`, or a "
            "file of JSON objects, one a line"
        ) from error


def _item(number: int, values: dict[str, Any]) -> Asked:
    settings = _fields("settings", values.pop("settings", None) or {})
    more: dict[str, Any] = {}
    for key, value in values.items():
        if key is None or (key not in (*_NUMBERS, *_TEXTS, *_ANY) and "." not in key):
            known = ", ".join((*_TEXTS, *_NUMBERS))
            raise ValueError(
                f"{key}={value} is no field of a render; use {known}, or settings such as "
                "sampling.steps"
            )
        if "." in key:
            settings[key] = value
        elif value is None:  # as if it were not there; of a setting null is a value
            continue
        elif key in _NUMBERS:
            more[key] = _number(key, value)
        elif key in _TEXTS and not isinstance(value, _TEXTS[key]):
            raise ValueError(f"{key}={value} is no text; write it in quotes")
        else:
            more[key] = value
    prompt = more.pop("prompt", "").strip()
    if not prompt:
        raise ValueError("prompt is empty, so there is nothing to show; write one")
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-")
    name = str(more.pop("name", "")) or f"{number:04d}-{words or 'video'}"
    if not re.fullmatch(r"[\w][\w .-]{0,99}", name) or len(name.encode()) > _NAME_BYTES:
        raise ValueError(f"name={name!r} is no file name; use some letters, digits, dashes")
    if "prompt_at" in more:
        _check_times(more["prompt_at"])
    if settings:
        more["settings"] = settings
    return Asked(name=name, prompt=prompt, more=more)


def _check_times(value: object) -> None:
    for pair in value if isinstance(value, list | tuple) else [value]:
        match pair:
            case [int() | float(), str()]:
                continue
        raise ValueError(
            f"prompt_at={value} is no list of seconds and prompts; write it like "
            '[[2.5, "a blue square"]]'
        )


def _fields(what: str, value: object) -> dict[str, Any]:
    """By name."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} is {value!r}; give fields by name, such as prompt")
    return dict(value)


def _number(key: str, value: object) -> float:
    try:
        number: float = _NUMBERS[key](value)
        if isinstance(value, float) and number != value:
            raise ValueError
        return number
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{key}={value} is no number; write it like {key}=8") from None
