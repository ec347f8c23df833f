"""The command line: `longreel render`, `longreel presets`."""

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from .. import __version__
from ..pipeline.errors import RenderError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Long videos with video diffusion transformers.",
)


def main() -> None:
    """Entry point of the `longreel` command."""
    app()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True)
    ] = False,
) -> None:
    if version:
        typer.echo(f"longreel {__version__}")
        raise typer.Exit


@app.command(no_args_is_help=True)
def render(
    prompt: Annotated[str, typer.Argument(help="What the video shows.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Configuration, e.g. sampling.steps=20."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write; by default named after the prompt."),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Model and settings to start from.")] = None,
    frames: Annotated[int | None, typer.Option(help="Number of frames.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed, another video.")] = 0,
    image: Annotated[Path | None, typer.Option(help="Picture the video starts from.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would happen, load nothing.")
    ] = False,
) -> None:
    """Render a prompt to a video file."""
    with _plain_errors():
        from ..configs.load import to_yaml
        from ..pipeline.plan import describe
        from .progress import progress
        from .render import plan_render, render_file

        plan = plan_render(
            prompt, preset=preset, frames=frames, seed=seed, image=image, overrides=overrides or ()
        )
        if dry_run:
            typer.echo(f"{to_yaml(plan.config)}\n{describe(plan)}")
            return
        with progress() as report:
            video = render_file(plan, output or _default_name(prompt, seed), report)
        typer.echo(video.path)


@app.command()
def presets() -> None:
    """List the presets."""
    with _plain_errors():
        from ..configs.load import preset_summaries

        rows = preset_summaries()
        width = max(len(name) for name, _ in rows)
        for name, summary in rows:
            typer.echo(f"{name:{width}}  {summary}")


def _default_name(prompt: str, seed: int) -> Path:
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].strip("-")
    return Path(f"{words or 'video'}-{seed}.mp4")


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What went wrong in a sentence on stderr, and an exit code; a bug keeps its traceback."""
    signal.signal(signal.SIGTERM, _interrupt)  # so that temporary files are removed then, too
    try:
        yield
    except KeyboardInterrupt:
        _fail("stopped; nothing was written", 130)
    except ValueError as error:
        _fail(str(error), 2)
    except (OSError, RenderError) as error:
        _fail(str(error), 1)


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> NoReturn:
    print(f"longreel: {message}", file=sys.stderr)
    raise typer.Exit(code)
