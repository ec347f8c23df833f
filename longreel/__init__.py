"""longreel: long videos with video diffusion transformers on many GPUs.

Everything heavy is imported when a function is called, so that importing this takes no time.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

if TYPE_CHECKING:
    from torch import Tensor

    from .jobs.client.async_client import AsyncClient, AsyncRender, RenderInfo
    from .jobs.client.client import Client, Render
    from .jobs.client.errors import RenderFailed, ServerError
    from .jobs.stream import FrameStream
    from .jobs.video import Video
    from .pipeline.errors import RenderError
    from .pipeline.generator import Chunk

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "AsyncRender",
    "Chunk",
    "Client",
    "FrameStream",
    "Render",
    "RenderError",
    "RenderFailed",
    "RenderInfo",
    "Request",
    "ServerError",
    "Video",
    "generate_latents",
    "render",
    "stream",
]
_HOMES = {
    "AsyncClient": "jobs.client.async_client",
    "AsyncRender": "jobs.client.async_client",
    "RenderInfo": "jobs.client.async_client",
    "Client": "jobs.client.client",
    "Render": "jobs.client.client",
    "RenderFailed": "jobs.client.errors",
    "ServerError": "jobs.client.errors",
    "Chunk": "pipeline.generator",
    "FrameStream": "jobs.stream",
    "RenderError": "pipeline.errors",
    "Video": "jobs.video",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # also what has not been asked for yet


class Request(TypedDict, total=False):
    """What a render is asked with, besides its prompt."""

    preset: str | None  # a name out of `longreel presets`
    frames: int | None
    seed: int  # another one, another video; 0 if it is left out
    image: str | Path | None  # the picture that it starts from
    prompt_at: Sequence[tuple[float, str]]  # seconds, and the prompt of the blocks from then on
    overrides: Sequence[str]  # "key=value" as on the command line: "sampling.steps=20"


def render(prompt: str, output: str | Path, **request: Unpack[Request]) -> "Video":
    """Render a prompt to `output`, which appears when it is complete.

    preset: a name out of `longreel presets`, or a .yaml file; by default shapes
    frames: 1 + 4n of them; by default the preset's
    seed: another one, another video; by default 0
    image: path of the picture that it starts from, for models that take one
    prompt_at: (seconds, prompt) pairs, another prompt for the blocks from then on
    overrides: "key=value" texts as on the command line, such as "sampling.steps=20"

    ValueError says what a request cannot have, before anything is loaded. RenderError: a render
    that began well cannot go on.
    """
    from .jobs.render import plan_render, render_file

    return render_file(plan_render(prompt, **request), output)


def stream(prompt: str, **request: Unpack[Request]) -> "FrameStream":
    """The frames of a render as they become final; the request is checked before this returns.

    It takes what `render` does, but for the output. `frames=0` goes on until `stop()`;
    `set_prompt()` changes what blocks to come show.
    """
    from .jobs.render import plan_render, stream_chunks

    return stream_chunks(plan_render(prompt, **request))


def generate_latents(prompt: str, **request: Unpack[Request]) -> "Tensor":
    """The clean latents of a render, for people who decode elsewhere; asked for as in `render`.

    Float32 on the host, (1, channels, latents, height, width), normalised per channel as the
    model makes them: multiply by the VAE's standard deviation and add its mean before decoding.
    """
    from .jobs.render import plan_render, render_latents

    return render_latents(plan_render(prompt, **request))
