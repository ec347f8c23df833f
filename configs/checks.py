"""Checks of single values, with messages that name the field, its value and the way out.

None passes: where a field may have it, the value is somebody else's to give.
"""

import math
from collections.abc import Sequence

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


def check_finite(field: str, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise ValueError(
            f"{field}={value} would turn every latent into NaN; set it to a finite number"
        )
