"""What a render was asked to be: written once, before anything is made of it."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...configs.fields import check_key, fields
from ...configs.load import merge
from ...configs.schema import Config
from ...pipeline.request import Request
from ...pipeline.section import Section
from .durable import write_whole

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Of one render. Pictures lie in its folder, under the names given here."""

    render: str
    created_s: float  # of Unix time
    prompt: str
    prompt_at: tuple[tuple[float, str], ...]
    seed: int
    config: Config
    image: str  # name of the picture it starts from; empty: none
    last_image: str
    output: str  # where its file is wanted; empty: nowhere
    versions: dict[str, str]  # of what it was begun with
    weights: dict[str, str]  # fingerprints by part, and their scheme; empty: files of a cluster

    def request(
        self,
        folder: Path,
        changes: Mapping[str, Any] = MappingProxyType({}),
        section: Section | None = None,
    ) -> Request:
        """`changes`: fields by dotted key that this machine, its memory, or an edit want otherwise;
        `section`: what an edit makes."""
        others = dict(changes)
        max_inflight = others.pop("max_inflight", None)
        config = _merge(_flatten(self.config) | others) if others else self.config
        if self.last_image:
            last_image = os.fspath(folder / self.last_image)
            config = replace(config, video=replace(config.video, last_image=last_image))
        return Request(
            prompt=self.prompt,
            config=config,
            seed=self.seed,
            image=folder / self.image if self.image else None,
            prompt_at=self.prompt_at,
            max_inflight=max_inflight,
            section=section,
        )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    values = {**asdict(manifest), "format": FORMAT, "config": _flatten(manifest.config)}
    write_whole(
        folder / MANIFEST, json.dumps(values | {"digest": _digest(values)}, indent=1).encode()
    )


def read_manifest(folder: Path) -> Manifest:
    """ValueError says what is wrong with it, and what could be done."""
    path = folder / MANIFEST
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(
            f"{folder} has no {MANIFEST}, so it is no render; `longreel renders` lists those there "
            "are"
        ) from None
    except ValueError:
        raise _damaged(path) from None
    if not isinstance(values, dict):
        raise _damaged(path)
    version = values.pop("format", None)
    if version != FORMAT:
        raise ValueError(
            f"{path} is of format {version} and this longreel reads format {FORMAT}, so the render "
            f"cannot be opened; use longreel {_writer(values)}, which wrote it"
        )
    if values.pop("digest", None) != _digest(values | {"format": FORMAT}):
        raise _damaged(path)
    try:
        config = _config(json.dumps(values["config"]))
        prompt_at = tuple((second, text) for second, text in values["prompt_at"])
        return Manifest(**{**values, "config": config, "prompt_at": prompt_at})
    except (ValueError, TypeError, KeyError) as error:  # of a later version, or of a far older one
        raise ValueError(
            f"{path} holds what this longreel does not know ({error}), so the render cannot be "
            f"opened; use longreel {_writer(values)}, which wrote it"
        ) from error


def _flatten(config: Config) -> dict[str, Any]:
    """By dotted key, so that fields which a later version adds have their defaults."""
    groups = asdict(config)
    return {
        key: groups[group][name] if group else groups[name]
        for key in fields()
        for group, _, name in [key.rpartition(".")]
    }


@lru_cache(maxsize=256)
def _config(text: str) -> Config:
    """A merge takes longer than all else of opening a render, and many have the same settings."""
    return _merge(json.loads(text))


def _merge(settings: dict[str, Any]) -> Config:
    for key, value in settings.items():
        check_key(key, value)
    config: Config = merge(settings, Config)
    return config


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _writer(values: dict[str, Any]) -> str:
    versions = values.get("versions")
    return str(versions.get("longreel", "as new")) if isinstance(versions, dict) else "as new"


def _damaged(path: Path) -> ValueError:
    return ValueError(
        f"{path} is damaged (its digest does not fit), so what was asked for is not known; put it "
        "back from a copy, or render again"
    )
