"""What the native API takes and gives: the source of its OpenAPI document."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from .record import State

Prompt = Annotated[str, StringConstraints(min_length=1, max_length=4000, pattern=r"\S")]
RenderId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
PICTURE_CHARS = 22_400_000  # a body's 16 MiB in base64
Setting = int | float | bool | str | None | list[int]


class Strict(BaseModel):
    """Refuses fields that it has not."""

    model_config = ConfigDict(extra="forbid")


class PromptAt(Strict):
    seconds: float = Field(ge=0, le=86_400, examples=[1.5])
    prompt: Prompt = Field(examples=["a blue square stands still"])


class CreateRender(Strict):
    """A video somebody wants. What is left out is the preset's."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "a red circle drifts to the right", "preset": "shapes", "frames": 17},
                {
                    "prompt": "a red circle drifts to the right",
                    "frames": 97,
                    "seed": 7,
                    "settings": {"sampling.steps": 4, "video.height": 64},
                    "prompt_at": [{"seconds": 3.0, "prompt": "a blue square stands still"}],
                    "priority": 5,
                    "deadline_s": 3600,
                },
            ]
        },
    )

    prompt: Prompt = Field(description="What the video shows.")
    preset: str | None = Field(
        default=None, max_length=64, description="A name out of `longreel presets`."
    )
    frames: int | None = Field(default=None, ge=1, le=10_000_000)
    seconds: float | None = Field(
        default=None, gt=0, le=86_400, description="In place of frames: the nearest number of them."
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    prompt_at: list[PromptAt] = Field(
        default=[], max_length=1000, description="Other prompts from these seconds on."
    )
    settings: dict[str, Setting] = Field(
        default={},
        max_length=64,
        description="Fields of video, sampling, blocks and output, such as sampling.steps.",
    )
    image: str | None = Field(
        default=None,
        max_length=PICTURE_CHARS,
        description="Picture the video starts from: PNG, JPEG or WebP, in base64.",
    )
    priority: int = Field(default=0, ge=-10, le=10, description="Higher ones run first.")
    deadline_s: float | None = Field(
        default=None, gt=0, le=31_536_000, description="Ends as failed when not done by then."
    )
    pace: Literal["render", "consumer"] = Field(
        default="render",
        description="consumer: a live session, made no faster than its reader takes it.",
    )


class ExtendRender(Strict):
    """More of a render that is done."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"seconds": 4, "prompt": "a blue square stands still"}]},
    )

    frames: int | None = Field(default=None, ge=1, le=10_000_000, description="So many more.")
    seconds: float | None = Field(
        default=None, gt=0, le=86_400, description="In place of frames: the nearest number of them."
    )
    prompt: Prompt | None = Field(
        default=None, description="Of what is added; by default the last one goes on."
    )
    prompt_at: list[PromptAt] = Field(
        default=[], max_length=1000, description="Other prompts, by seconds of the whole video."
    )


class RedoRender(Strict):
    """A section of a render that is done, made anew."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"first": 8, "stop": 16, "prompt": "a blue square stands still"}]
        },
    )

    first: int = Field(ge=0, le=10_000_000, description="Its first frame.")
    stop: int = Field(ge=0, le=10_000_000, description="The frame after its last.")
    prompt: Prompt | None = Field(default=None, description="By default those it had.")


class ChangePrompt(Strict):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "a blue square stands still"}]}
    )

    prompt: Prompt = Field(description="Of the blocks that are yet to begin.")


class Failure(BaseModel):
    code: str
    message: str


class StageView(BaseModel):
    """Consecutive layers of the model."""

    stage: int
    busy: float | None = Field(description="Share of the time since the render began; or unknown.")


class Progress(BaseModel):
    """Frames that can be watched, and how the rest stands."""

    frames: int
    of: int
    fraction: float = Field(ge=0, le=1)
    blocks: int = Field(description="Committed.")
    of_blocks: int
    step: int = Field(description="Steps that all blocks together have taken.")
    of_steps: int
    of_block_steps: int = Field(description="That each block takes.")
    stages: list["StageView"]
    in_flight: dict[str, int] = Field(description="Blocks in work, and their steps taken.")
    eta_s: float | None


class Links(BaseModel):
    video: str
    playlist: str
    events: str
    frames: str
    stream: str
    thumbnail: str


class RenderView(BaseModel):
    id: str
    status: State
    prompt: str
    preset: str
    seed: int
    width: int
    height: int
    fps: int
    frames: int
    priority: int
    pace: Literal["render", "consumer"]
    progress: Progress
    place: int | None = Field(description="In the queue, from 0; null once it runs.")
    created_at: float
    started_at: float | None
    ended_at: float | None
    deadline_at: float | None
    first_frame_s: float | None = Field(description="From the start to the first segment.")
    attempts: int
    gpu_seconds: float
    parent: str | None
    error: Failure | None
    links: Links


class RenderPage(BaseModel):
    data: list[RenderView]
    has_more: bool
    last_id: str | None = Field(description="Give it as `after` for the next page.")


class Removed(BaseModel):
    id: str
    deleted: Literal[True] = True


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorView(BaseModel):
    """Every answer from 400 on."""

    error: ErrorBody


AGAIN = {"retry-after": {"description": "In seconds.", "schema": {"type": "integer"}}}
UNCHANGED: dict[int | str, dict[str, Any]] = {
    304: {"description": "It is still as `If-None-Match` names it."}
}


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Of a route, for its documentation: those it can have besides what every route can."""
    said = {
        400: "What was sent cannot be read.",
        401: "No token that the server knows.",
        403: "Not from here: another site's page, or a name that is not this server's.",
        404: "No such render, or none of yours.",
        405: "No such method here.",
        408: "The body came too slowly.",
        409: "Not in the state that the render is in.",
        413: "The body is too large.",
        416: "No such range.",
        422: "The request cannot be met; the message says what to change.",
        429: "Too many changes, or too many renders in the queue.",
        503: "No room for it at the moment, as on a full disk: try again later.",
    }
    every = (400, 401, 403, 408, 413, 422, 503)
    return {
        status: {"model": ErrorView, "description": said[status]}
        | ({"headers": AGAIN} if status in (429, 503) else {})
        for status in sorted({*every, *statuses})
    }
