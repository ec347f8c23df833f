"""What the `openai` client sends, as a form or as JSON, and the request that it comes to."""

import base64
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel, Field, ValidationError, WithJsonSchema
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from .errors import ApiError
from .schemas import PICTURE_CHARS, CreateRender, Prompt, RenderId, Strict

_DATA_URL = re.compile(r"data:image/(?:png|jpeg|webp);base64,(.*)", re.DOTALL)

_TEXT_OR_NUMBER = {
    "anyOf": [
        {"type": "string", "pattern": r"^[1-9][0-9]{0,3}$"},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 86_400},
    ]
}
Seconds = Annotated[float, Field(gt=0, le=86_400), WithJsonSchema(_TEXT_OR_NUMBER)]
Size = Annotated[str, Field(pattern=r"^[1-9][0-9]{1,4}x[1-9][0-9]{1,4}$", examples=["96x64"])]

M = TypeVar("M", bound=BaseModel)


class Picture(Strict):
    image_url: str = Field(
        max_length=PICTURE_CHARS + 32,  # what goes before it
        pattern=r"^data:image/(png|jpeg|webp);base64,",
        description="A data: URL; no other is fetched.",
    )


class CreateVideo(Strict):
    """The client's own fields, and those that other servers of this shape have added."""

    prompt: Prompt
    model: str | None = Field(default=None, max_length=64, description="A preset.")
    seconds: Seconds | None = None
    size: Size | None = None
    input_reference: Picture | None = None
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    fps: int | None = Field(default=None, ge=1, le=240)
    num_frames: int | None = Field(default=None, ge=1, le=10_000_000)
    negative_prompt: str | None = Field(default=None, max_length=4000)
    num_inference_steps: int | None = Field(default=None, ge=1, le=1000)
    guidance_scale: float | None = Field(default=None, ge=0, le=100)
    flow_shift: float | None = Field(default=None, ge=0.001, le=100)
    priority: int = Field(default=0, ge=-10, le=10)
    pace: Literal["render", "consumer"] = "render"


class Video(Strict):
    id: RenderId


class ExtendVideo(Strict):
    prompt: Prompt
    seconds: Seconds
    video: Video


class EditVideo(Strict):
    prompt: Prompt
    video: Video


class RemixVideo(Strict):
    prompt: Prompt


def body_of(model: type[BaseModel], *, file: str | None = None) -> dict[str, Any]:
    """Its OpenAPI: JSON, or a form in which `file` is one."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    form = json.loads(json.dumps(schema))
    if file:
        form["properties"][file] = {"type": "string", "format": "binary"}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": schema},
                "multipart/form-data": {"schema": form},
            },
        }
    }


async def read(request: Request, model: type[M], file: str | None = None) -> tuple[M, bytes | None]:
    """The fields, and what was uploaded as `file` in place of that field."""
    values: Mapping[str, Any]
    upload: bytes | None = None
    if request.headers.get("content-type", "").startswith("application/json"):
        try:
            values = json.loads(await request.body())
        except (ValueError, RecursionError):
            raise ApiError(400, "invalid_request", "the body is no JSON") from None
        if not isinstance(values, dict):
            raise ApiError(400, "invalid_request", "the body is no JSON object")
    else:
        values, upload = await _read_form(request, file)
    try:
        if upload is not None and file is not None and model.model_fields[file].is_required():
            known = {name: values.get(name) for name in model.model_fields if name != file}
            checked = model.model_validate({**values, **known, file: {"id": "uploaded"}})
        else:
            checked = model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or None
        message = f"{where or 'the request'}: {first['msg']}"
        raise ApiError(422, "invalid_request", message, field=where) from None
    return checked, upload


async def _read_form(request: Request, file: str | None) -> tuple[dict[str, Any], bytes | None]:
    values: dict[str, Any] = {}
    upload = None
    try:
        form = await request.form(max_files=1, max_fields=64, max_part_size=2**20)
    except HTTPException as error:
        raise ApiError(400, "invalid_request", f"the form cannot be read: {error.detail}") from None
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != file:
                    raise ApiError(422, "invalid_request", f"{name} is no file", field=name)
                upload = await value.read()
            elif inner := re.fullmatch(r"(\w+)\[(\w+)\]", name):  # as the client flattens objects
                values.setdefault(inner[1], {})
                if isinstance(values[inner[1]], dict):
                    values[inner[1]][inner[2]] = value
            else:
                values[name] = value
    finally:
        await form.close()
    return values, upload


def to_render(asked: CreateVideo, upload: bytes | None) -> CreateRender:
    """In the native API's words."""
    settings: dict[str, Any] = {
        "video.fps": asked.fps,
        "sampling.negative_prompt": asked.negative_prompt,
        "sampling.steps": asked.num_inference_steps,
        "sampling.guidance": asked.guidance_scale,
        "sampling.shift": asked.flow_shift,
    }
    if asked.size is not None:
        width, _, height = asked.size.partition("x")
        settings |= {"video.width": int(width), "video.height": int(height)}
    image = None if upload is None else base64.b64encode(upload).decode()
    if asked.input_reference is not None:
        matched = _DATA_URL.fullmatch(asked.input_reference.image_url)
        assert matched is not None
        image = matched[1]
    return CreateRender(
        prompt=asked.prompt,
        preset=asked.model,
        frames=asked.num_frames,
        seconds=asked.seconds if asked.num_frames is None else None,
        seed=asked.seed,
        settings={key: value for key, value in settings.items() if value is not None},
        image=image,
        priority=asked.priority,
        pace=asked.pace,
    )
