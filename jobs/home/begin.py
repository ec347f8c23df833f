"""The folder of a new render: what was asked for, and all that it needs of other places."""

import os
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from ... import __version__
from ...configs.files import expand
from ...models.fingerprint import SCHEME
from ...models.lora import split_adapters
from ...pipeline.parts import fingerprints
from ...pipeline.plan import Plan
from .durable import write_whole
from .manifest import Manifest, write_manifest

_VERSIONED = ("torch", "diffusers", "transformers", "ray", "av", "numpy")


def begin(folder: Path, plan: Plan, output: Path | None) -> None:
    """`output`: where its file is wanted."""
    request, config = plan.request, plan.config
    (folder / "inputs").mkdir(parents=True)
    image, last_image = (
        _keep_picture(folder, path, which)
        for path, which in (
            (request.image, "first"),
            (expand(config.video.last_image) if config.video.last_image else None, "last"),
        )
    )
    model = replace(
        config.model,
        checkpoint=_absolute(config.model.checkpoint),
        transformer=_absolute(config.model.transformer),
        lora=_absolute_adapters(config.model.lora),
        lora_low=_absolute_adapters(config.model.lora_low),
    )
    is_here = config.parallel.address == "local"
    manifest = Manifest(
        render=folder.name,
        created_s=round(time.time(), 3),
        prompt=request.prompt,
        prompt_at=request.prompt_at,
        seed=request.seed,
        config=replace(config, model=model),
        image=image,
        last_image=last_image,
        output="" if output is None else os.fspath(output.absolute()),
        versions={"longreel": __version__} | {name: version(name) for name in _VERSIONED},
        weights={"scheme": SCHEME, **fingerprints(plan)} if is_here else {},
    )
    write_manifest(folder, manifest)


def _keep_picture(folder: Path, path: Path | None, which: str) -> str:
    """Its name in the folder, as the file itself may be gone when the render goes on."""
    if path is None:
        return ""
    kept = Path("inputs") / which / path.name
    (folder / kept).parent.mkdir()
    write_whole(folder / kept, path.read_bytes())
    return os.fspath(kept)


def _absolute(reference: str) -> str:
    """A local path as it is found from any working directory."""
    path = expand(reference) if reference else Path()
    return os.fspath(path.absolute()) if reference and os.path.exists(path) else reference


def _absolute_adapters(setting: str) -> str:
    """As `_absolute`, of each; as it stands in a folder whose name would be read as several."""
    adapters = [(_absolute(reference), scale) for reference, scale in split_adapters(setting)]
    absolute = ",".join(reference + scale for reference, scale in adapters)
    return absolute if split_adapters(absolute) == adapters else setting
