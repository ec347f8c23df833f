"""Checks of single values, with messages that name the field, its value and the way out.

None passes: where a field may have it, the value is somebody else's to give.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .suggest import did_you_mean


def check_name(
    field: str, value: str | None, names: Sequence[str], what: str = "the render"
) -> None:
    if value is not None and value not in names:
        raise ValueError(
            f"{field}={value} is nothing we know, so {what} cannot start; "
            f"{did_you_mean(value, names)}set it to one of {', '.join(names)}"
        )


def check_range(field: str, value: float | None, low: float, high: float, consequence: str) -> None:
    """Both ends are allowed; NaN never is."""
    if value is not None and not low <= value <= high:
        bounds = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of {low:g} or more"
        raise ValueError(f"{field}={value} {consequence}; set it to a number {bounds}")


def check_given(field: str, value: str, consequence: str) -> None:
    """Text that is not blank."""
    if not value.strip():
        raise ValueError(f"{field} is blank, so {consequence}; name one")


def check_read(field: str, group: Any, reads: Mapping[str, Sequence[str]]) -> None:
    """What the algorithm in `field`, of this group, does not read must not be set: it would seem to
    have been done. `reads`: by algorithm, fields that not all of them read."""
    of, _, chooser = field.rpartition(".")
    chosen = getattr(group, chooser)
    for name in dict.fromkeys(name for names in reads.values() for name in names):
        value, default = getattr(group, name), getattr(type(group), name)
        if name in reads[chosen] or value == default:
            continue
        shown = f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else value
        others = [other for other, names in reads.items() if name in names]
        raise ValueError(
            f"{of}.{name}={shown} would be ignored, as {field}={chosen} does not read it; leave it "
            f"out, or set {field} to one that does: {', '.join(others)}"
        )


def check_finite(field: str, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise ValueError(
            f"{field}={value} would turn every latent into NaN; set it to a finite number"
        )
