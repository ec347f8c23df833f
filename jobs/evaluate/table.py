"""Means over the prompts of each setting, and how they are printed."""

from collections.abc import Sequence

import numpy as np

from .frechet import frechet_distance, reference_features
from .measure import IDEALS
from .records import Record, Records

Row = dict[str, float | str | None]

_SHORT = {"prompt_whole": "all of it", "identity_last": "last 100"}


def rows(records: Records) -> list[Row]:
    """A row a setting, in their order: the mean of every score over the clips that have it."""
    table = []
    for setting in dict.fromkeys(name for name, _ in records):
        mine = [record for (name, _), record in records.items() if name == setting]
        row: Row = {"setting": setting, "prompts": len(mine)}
        for name in IDEALS:
            row[name] = _mean([record.scores[name] for record in mine])
        seen = np.array([window for record in mine for window in record.features])
        # drawn only for what can be compared: it takes many seconds
        row["frechet"] = frechet_distance(seen, reference_features()) if len(seen) > 1 else None
        row["first_frame_s"] = _mean([record.first_frame_s for record in mine])
        row["total_s"] = _mean([record.total_s for record in mine])
        table.append(row)
    return table


def curve(records: Records, setting: str) -> list[float | None]:
    """Identity over the length of the clips: means of what is judged."""
    mine = [record.identity_curve for (name, _), record in records.items() if name == setting]
    return [_mean(column) for column in zip(*mine, strict=True)]


def text(table: Sequence[Row]) -> str:
    """A line a score, a column a setting; a dash where nothing was judged."""
    names = [name for name in table[0] if name != "setting"]
    head = ["", *(f"({i})" for i in range(1, len(table) + 1))]
    body = [[_SHORT.get(name, name), *(_cell(row[name]) for row in table)] for name in names]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = [f"({i}) {row['setting']}" for i, row in enumerate(table, start=1)]
    for first, *cells in [head, *body]:
        numbers = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([f"{first:{widths[0]}}", *numbers]).rstrip())
    return "\n".join(lines)


def describe(record: Record) -> str:
    """A clip in a line."""
    parts = (f"{name} {_cell(record.scores[name])}" for name in ("prompt", "identity"))
    return f"{record.setting}, {record.number}: {', '.join(parts)} ({record.total_s:.1f} s)"


def _cell(value: float | str | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _mean(values: Sequence[float | None]) -> float | None:
    judged = [value for value in values if value is not None]
    return float(np.mean(judged)) if judged else None
