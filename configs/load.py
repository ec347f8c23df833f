"""Preset and overrides to one frozen Config.

OmegaConf checks and converts whatever has a type. Text goes round it: in a prompt OmegaConf would
read `${...}` and `???` as its own, and `${oc.env:NAME}` would let the environment in.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_type_hints

from .checks import shown
from .fields import check_key, fields
from .files import expand, read_settings
from .schema import Config
from .suggest import did_you_mean

DEFAULT_PRESET = "shapes"

_FOLDER = Path(__file__).parent
# type in the schema: what to call it, an example
_KINDS: dict[Any, tuple[str, str]] = {
    str: ("text", '"some text"'),
    bool: ("true or false", "true"),
    int: ("a whole number", "8"),
    float: ("a number", "0.5"),
    float | None: ("a number or null", "3.0"),
    int | None: ("a whole number or null", "3"),
    tuple[int, ...]: ("a list of whole numbers", "[1000,750,500,250]"),
}


def preset_names() -> list[str]:
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def preset_summaries() -> list[tuple[str, str]]:
    """(name, one line about it) of every preset."""
    return [(name, str(_read_shipped(name)["summary"])) for name in preset_names()]


def load_config(
    preset: str | None = None, overrides: Sequence[str] = (), before: Config | None = None
) -> Config:
    """The defaults, changed by a preset, changed by "key=value" overrides.

    A preset is a name or the path of a .yaml file; a file may name the preset to start from in its
    field `preset`, so what `to_yaml` wrote loads again. `before`: what nobody has asked for, as a
    server's own settings; none: `shipped`.
    """
    config = read_config(preset, overrides)
    config.check_asked(before or shipped(config))
    return config


def read_config(preset: str | None, overrides: Sequence[str]) -> Config:
    """The same, also where some of it would be ignored."""
    settings = _read_preset(DEFAULT_PRESET if preset is None else preset)
    for override in overrides:
        key, value = parse_override(override)
        settings[key] = value
    config: Config = merge(settings, Config)
    return config


def shipped(config: Config) -> Config:
    """The preset that it starts from, as it ships; where there is none, the defaults."""
    return _shipped_config(config.preset) if config.preset else Config()


def to_yaml(config: Config) -> str:
    """Every field, in a form that `load_config` reads back."""
    import yaml

    values = dataclasses.asdict(config)
    values["sampling"]["timesteps"] = list(config.sampling.timesteps)
    values["attention"]["window"] = list(config.attention.window)
    text: str = yaml.safe_dump(values, allow_unicode=True, sort_keys=False, width=10_000)
    if set("\x85\u2028\u2029").isdisjoint(text):
        return text
    # PyYAML reads these as plain line breaks unless they are escaped, as all of Unicode then is
    escaped: str = yaml.safe_dump(values, sort_keys=False, width=10_000)
    return escaped


def _read_preset(preset: str) -> dict[str, Any]:
    if not isinstance(preset, str):
        raise ValueError(
            f"preset={preset!r} is no text, so there is nothing to start from; give the name of a "
            "preset (see `longreel presets`), or the path of a .yaml file as text"
        )
    if not preset.endswith(".yaml"):
        return _read_shipped(preset)
    settings = read_settings(expand(preset))
    base = settings.get("preset")
    return {**_read_shipped(str(base)), **settings} if base else settings


def _read_shipped(name: str) -> dict[str, Any]:
    names = preset_names()
    if name not in names:
        raise ValueError(
            f"preset={name} is no preset, so there is nothing to start from; "
            f"{did_you_mean(name, names)}give a path ending in .yaml, or one of {', '.join(names)}"
        )
    return {**_shipped(name), "preset": name}


@cache
def _shipped(name: str) -> Mapping[str, Any]:
    """Read once: to do so takes a quarter of the time that the settings of a request do."""
    return MappingProxyType(read_settings(_FOLDER / f"{name}.yaml"))


@cache
def _shipped_config(name: str) -> Config:
    config: Config = merge(_read_shipped(name), Config)
    return config


def parse_override(override: str, schema: Any = Config) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals:
        raise ValueError(f"override {override!r} sets nothing; write it as key=value")
    if schema is Config and key == "preset":
        raise ValueError(
            f"preset={text} comes too late as an override, which changes a preset already chosen; "
            "give it as the preset itself"
        )
    check_key(key, text, schema)
    return key, text if fields(schema)[key] is str else _parse_value(text.strip())


def to_override(key: str, value: object) -> str:
    """What `parse_override` reads back, of a value as YAML and JSON have it."""
    return f"{key}={shown(value)}"


def _parse_value(text: str) -> Any:
    """Lists and null; OmegaConf converts the rest. YAML would read 010 as 8 and 1:30 as 90."""
    if text == "null":
        return None
    if text.startswith("[") and text.endswith("]"):
        inside = text[1:-1].strip()
        return [item.strip() for item in inside.split(",")] if inside else []
    return text


def merge(settings: Mapping[str, Any], schema: Any) -> Any:
    """The schema's frozen dataclass: its defaults, changed by settings by dotted key."""
    kinds = fields(schema)
    typed: dict[str, Any] = {}
    text: dict[str, str] = {}
    for key, value in settings.items():
        if kinds[key] is str:
            if not isinstance(value, str):
                raise _wrong_type(key, value, kinds[key])
            if "\0" in value:
                raise ValueError(
                    f"{key}={value[:60]!r} holds a NUL character, at which names of files and the "
                    "metadata of a video would end; remove it"
                )
            text[key] = value
        elif any("${" in str(item) or item == "???" for item in _items(value)):
            raise _wrong_type(key, value, kinds[key])  # OmegaConf takes these in any field
        else:
            typed[key] = value
    values = _convert(typed, schema)
    for key, value in text.items():
        group, _, name = key.rpartition(".")
        (values[group] if group else values)[name] = value
    return _construct(schema, values)


def _convert(settings: Mapping[str, Any], schema: Any) -> Any:
    """The schema's defaults, changed by settings that have a type."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    defaults = _defaults(schema)
    try:
        # not OmegaConf.update, which refuses to change a frozen group
        merged = OmegaConf.merge(defaults, _nest(settings))
    except OmegaConfBaseException:
        for key, value in settings.items():  # which of them it was
            try:
                OmegaConf.merge(defaults, _nest({key: value}))
            except OmegaConfBaseException:
                raise _wrong_type(key, value, fields(schema)[key]) from None
        raise
    return OmegaConf.to_container(merged)


@cache
def _defaults(schema: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.structured(schema)


def _nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """One for all: OmegaConf wraps every dictionary anew, which took half of a merge."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        *groups, name = key.split(".")
        group = nested
        for each in groups:
            group = group.setdefault(each, {})
        group[name] = value
    return nested


def _items(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else [value]


def _wrong_type(key: str, value: object, of: Any) -> ValueError:
    kind, example = _KINDS[of]
    return ValueError(
        f"{key}={shown(value)} is not {kind}, so it cannot be used; write it like {key}={example}"
    )


def _construct(group: Any, values: Mapping[Any, Any]) -> Any:
    """By hand, since OmegaConf.to_object would check the groups before their text is in."""
    ready = {}
    for name, kind in get_type_hints(group).items():
        value = values[name]
        if dataclasses.is_dataclass(kind):
            value = _construct(kind, value)
        ready[name] = tuple(value) if isinstance(value, list) else value
    return group(**ready)
