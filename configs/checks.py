"""Checks of single values, with messages that name the field, its value and the way out.

None passes: where a field may have it, the value is somebody else's to give.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from .suggest import did_you_mean


def shown(value: object) -> str:
    """A value as an override sets it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)


def counted(count: int, what: str) -> str:
    """So many of a thing whose plural has an s."""
    return f"{count} {what}{'s' * (count != 1)}"


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


def check_read(
    field: str, group: Any, reads: Mapping[str, Sequence[str]], before: Any = None
) -> None:
    """What the algorithm in `field`, of this group, does not read must not be set: it would seem to
    have been done. `reads`: by algorithm, fields that not all of them read. `before`: the group
    as it was when nobody had set anything; none: the defaults."""
    of, dot, chooser = field.rpartition(".")
    chosen = shown(getattr(group, chooser))
    for name in dict.fromkeys(name for names in reads.values() for name in names):
        if name in reads[chosen]:
            continue
        default = _default(group, name) if before is None else getattr(before, name)
        for key, value in _changed(of + dot + name, getattr(group, name), default):
            others = [other for other, names in reads.items() if name in names]
            raise ValueError(
                f"{key}={shown(value)} would be ignored, as {field}={chosen} does not read it; "
                f"leave it out, or set {field} to one that does: {', '.join(others)}"
            )


def _default(group: Any, name: str) -> Any:
    (field,) = (field for field in fields(group) if field.name == name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def _changed(key: str, value: Any, default: Any) -> Iterator[tuple[str, object]]:
    """Fields that are not as `default` has them, by dotted key; of a whole group, too."""
    if is_dataclass(value):
        for name, each in vars(value).items():
            yield from _changed(f"{key}.{name}", each, getattr(default, name))
    elif value != default:
        yield key, value


def check_finite(field: str, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise ValueError(
            f"{field}={value} would turn every latent into NaN; set it to a finite number"
        )
