"""What a job is to do: a folder with a request in it, which is all that travels to the cluster."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...configs.errors import first_line
from ...configs.files import Repeated, expand, load_yaml
from ...configs.load import to_override
from ..prompt_file import changes_of

NAME = "errand.json"
MARK = "longreel "  # a line of the job's log that begins so goes on as JSON
_FIELDS = ("prompt", "preset", "frames", "seed", "image", "prompt_at", "settings")


@dataclass(frozen=True, kw_only=True)
class Errand:
    """A render to be made, or gone on with where its folder is there already."""

    render: str
    home: str | None  # on the cluster; none: the user's data folder there
    prompt: str = ""
    preset: str | None = None  # a name, or a file in the same folder
    frames: int | None = None
    seed: int = 0
    image: str | None = None  # in the same folder
    prompt_at: Sequence[tuple[float, str]] = ()
    overrides: Sequence[str] = ()
    stages: int | None = None  # each on a device of the cluster; none: as the configuration says


def write_errand(errand: Errand, folder: Path) -> None:
    """Its picture and its preset, if that is a file, come along under names of ours."""
    values = asdict(errand)
    for field, what in (("image", "a PNG, JPEG or WebP file"), ("preset", "a YAML file")):
        if (file := _file_of(errand, field)) is None:
            continue
        if not file.is_file():
            raise ValueError(
                f"{field}={file} is no file, so there is nothing to send; give the path of {what}"
            )
        values[field] = f"{field}{file.suffix}"
        shutil.copyfile(file, folder / values[field])
    (folder / NAME).write_text(json.dumps(values), encoding="utf-8")


def read_errand(folder: Path) -> Errand:
    values = json.loads((folder / NAME).read_text(encoding="utf-8"))
    values["prompt_at"] = [(second, text) for second, text in values["prompt_at"]]
    for field in ("image", "preset"):
        if (file := _file_of(Errand(**values), field)) is not None:
            values[field] = str(folder / file)
    return Errand(**values)


def remembered(errand: Errand) -> str:
    """What a later job can be sent, of which the files are gone: without them it has no request."""
    if _file_of(errand, "image") or _file_of(errand, "preset"):
        errand = Errand(render=errand.render, home=errand.home, stages=errand.stages)
    return json.dumps(asdict(errand))


def _file_of(errand: Errand, field: str) -> Path | None:
    value: str | None = getattr(errand, field)
    if value is None or (field == "preset" and not value.endswith(".yaml")):
        return None
    return expand(value)


def read_request(path: Path) -> dict[str, Any]:
    """A YAML file of a render's fields, as keyword arguments of an Errand."""
    import yaml

    try:
        values = load_yaml(expand(path).read_text(encoding="utf-8"))
    except Repeated as error:
        raise ValueError(f"{path} {error}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(
            f"{path} cannot be read ({first_line(error)}); give a YAML file with a line "
            "such as `prompt: a red circle`"
        ) from error
    if not isinstance(values, dict) or not isinstance(values.get("prompt"), str):
        raise ValueError(
            f"{path} has no prompt, so there is nothing to show; write a line such as "
            "`prompt: a red circle`"
        )
    if unknown := sorted(values.keys() - {*_FIELDS}):
        raise ValueError(f"{path} sets {unknown[0]}, which no render has; use {', '.join(_FIELDS)}")
    settings = values.pop("settings", None) or {}
    if not isinstance(settings, Mapping):
        raise ValueError(
            f"settings in {path} are no `key: value` lines; write them like `sampling.steps: 4`"
        )
    values["overrides"] = [to_override(key, value) for key, value in settings.items()]
    values["prompt_at"] = changes_of(values.get("prompt_at") or {}, f"prompt_at in {path}")
    return values
