"""A schema's fields by dotted key, such as `sampling.steps`."""

import dataclasses
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, get_type_hints

from .schema import Config
from .suggest import nearest_key

_BESIDE = ("seed", "image", "prompt_at")  # of a render, and no part of its configuration


@cache
def fields(group: Any = Config, prefix: str = "") -> Mapping[str, Any]:
    """Type by dotted key."""
    found: dict[str, Any] = {}
    for name, kind in get_type_hints(group).items():
        key, is_group = prefix + name, dataclasses.is_dataclass(kind)
        found |= fields(kind, f"{key}.") if is_group else {key: kind}
    return MappingProxyType(found)


def check_key(key: str, value: object, schema: Any = Config) -> None:
    known = fields(schema)
    if key in known:
        return
    inside = [other for other in known if other.startswith(f"{key}.")]
    if inside:
        raise ValueError(f"{key}={value} is a whole group; set its fields, such as {inside[0]}")
    if key in _BESIDE and schema is Config:
        option = key.replace("_", "-")
        way_out = f"give it beside the settings: --{option}, or {key}= of a call or a request"
    elif near := nearest_key(key, known):
        way_out = f"did you mean {near}?"
    else:
        way_out = f"the fields are {', '.join(known)}"
    raise ValueError(f"{key}={value} sets no field we have, so nothing would change; {way_out}")
