"""One YAML file to settings by dotted key."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .fields import check_key, fields


def read_settings(path: Path) -> dict[str, Any]:
    """What the file sets, every key known, values as YAML has them."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
        repeated = _repeated_key(yaml.compose(text, Loader=yaml.SafeLoader))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"preset={path} cannot be read ({reason}); give the path of a YAML file in UTF-8"
        ) from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"preset={path} is not YAML ({reason}); write one 'key: value' a line"
        ) from None
    if repeated:
        raise ValueError(
            f"preset={path} sets {repeated} twice, and the first would be lost; remove one"
        )
    if not isinstance(values, dict):
        raise ValueError(f"preset={path} holds no fields; write one 'key: value' a line")
    settings = dict(_flatten(values))
    for key, value in settings.items():
        check_key(key, value)
    return settings


def _repeated_key(node: Any) -> str | None:
    """A key that PyYAML would silently take the last value of."""
    if node is None or isinstance(node.value, str):
        return None
    seen = set()
    for item in node.value:  # of a mapping: pairs of nodes; of a list: nodes
        if isinstance(item, tuple):
            key, item = item
            if key.value in seen:
                return str(key.value)
            seen.add(key.value)
        if repeated := _repeated_key(item):
            return repeated
    return None


def _flatten(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{key}.")
        elif value is not None or not any(known.startswith(f"{key}.") for known in fields()):
            yield key, value  # a group may stand empty, all its fields commented out
