"""Files that people name: where they are; one of YAML as settings by dotted key."""

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from .fields import check_key, fields
from .schema import Config


def expand(path: str | Path) -> Path:
    """With the home folder for a leading ~, which Path.expanduser refuses in names like ~draft."""
    return Path(os.path.expanduser(path))


def read_settings(path: Path, schema: Any = Config, kind: str = "preset") -> dict[str, Any]:
    """What the file sets, every key known, values as YAML has them; users call it a `kind`."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
        repeated = _repeated_key(yaml.compose(text, Loader=yaml.SafeLoader))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{kind}={path} cannot be read ({reason}); give the path of a YAML file in UTF-8"
        ) from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{kind}={path} is not YAML ({reason}); write one 'key: value' a line"
        ) from None
    if repeated:
        raise ValueError(
            f"{kind}={path} sets {repeated} twice, and the first would be lost; remove one"
        )
    if not isinstance(values, dict):
        raise ValueError(f"{kind}={path} holds no fields; write one 'key: value' a line")
    settings = dict(_flatten(values, fields(schema)))
    for key, value in settings.items():
        check_key(key, value, schema)
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


def _flatten(
    values: Mapping[Any, Any], known: Collection[str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _flatten(value, known, f"{key}.")
        elif value is not None or not any(other.startswith(f"{key}.") for other in known):
            yield key, value  # a group may stand empty, all its fields commented out
