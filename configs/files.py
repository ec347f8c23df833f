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


class Repeated(Exception):  # noqa: N818 -- what the matter is, of a file that is yet to be named
    """A key of which PyYAML would silently take the last value."""

    def __init__(self, key: object) -> None:
        super().__init__(f"sets {key} twice, and the first would be lost; remove one")


def load_yaml(text: str) -> Any:
    """Plain values. YAMLError, or Repeated."""
    import yaml

    class Once(yaml.SafeLoader):  # type: ignore[misc]  # untyped
        def compose_mapping_node(self, anchor: str | None) -> Any:
            node, seen = super().compose_mapping_node(anchor), set()
            for key, _ in node.value:  # as it is written: later, what is merged stands there too
                if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                    continue  # of the latter kind none can be a key, as is about to be said
                value = self.construct_object(key, deep=True)
                if value in seen:
                    raise Repeated(value)
                seen.add(value)
            return node

    return yaml.load(text, Once)


def read_settings(path: Path, schema: Any = Config, kind: str = "preset") -> dict[str, Any]:
    """What the file sets, every key known, values as YAML has them; users call it a `kind`."""
    import yaml

    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except Repeated as error:
        raise ValueError(f"{kind}={path} {error}") from None
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
    if not isinstance(values, dict):
        raise ValueError(f"{kind}={path} holds no fields; write one 'key: value' a line")
    settings: dict[str, Any] = {}
    for key, value in _flatten(values, fields(schema)):
        check_key(key, value, schema)
        if key in settings:  # within its group, and with a dot
            raise ValueError(f"{kind}={path} {Repeated(key)}")
        settings[key] = value
    return settings


def _flatten(
    values: Mapping[Any, Any], known: Collection[str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _flatten(value, known, f"{key}.")
        elif value is not None or not any(other.startswith(f"{key}.") for other in known):
            yield key, value  # a group may stand empty, all its fields commented out
