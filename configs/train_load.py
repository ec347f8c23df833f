"""A training file and overrides to one frozen TrainConfig."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from .files import expand, read_settings
from .load import merge, parse_override
from .suggest import did_you_mean
from .train_schema import TrainConfig

_FOLDER = Path(__file__).parent / "train"


def training_names() -> list[str]:
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_training(name: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """The defaults, changed by a file, changed by "key=value" overrides.

    The file is one of train/ by name, or any path that ends in .yaml.
    """
    settings = read_settings(_find(name), TrainConfig, "config")
    for override in overrides:
        key, value = parse_override(override, TrainConfig)
        settings[key] = value
    config: TrainConfig = merge(settings, TrainConfig)
    return config


def training_yaml(config: TrainConfig) -> str:
    """Every field, in a form that `load_training` reads back."""
    import yaml

    plain = {
        key: {name: _listed(item) for name, item in value.items()}
        if isinstance(value, dict)
        else value
        for key, value in dataclasses.asdict(config).items()
    }
    text: str = yaml.safe_dump(plain, sort_keys=False, width=10_000)
    return text


def _find(name: str) -> Path:
    if name.endswith(".yaml"):
        return expand(name)
    names = training_names()
    if name not in names:
        raise ValueError(
            f"config={name} is no training we ship, so there is nothing to train; "
            f"{did_you_mean(name, names)}give a path ending in .yaml, or one of {', '.join(names)}"
        )
    return _FOLDER / f"{name}.yaml"


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
