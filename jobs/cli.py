"""The command line: `longreel render`, `longreel presets`, and where the others are."""

import io
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from .. import __version__
from ..configs.errors import first_line, is_memory
from ..pipeline.errors import RenderError
from .client.client_cli import batch
from .evaluate.cli import evaluate
from .home.trace_cli import trace
from .options import FramesOption, HomeOption, ImageOption, PresetOption
from .renders_cli import renders, resume, run_and_export
from .serve.serve_cli import serve
from .simulate_cli import simulate
from .submit.submit_cli import cancel, download, logs, status, submit, watch
from .train.errors import TrainingError
from .train.train_cli import train


class _Commands(TyperGroup):
    """typer knows no repeatable option of two values: `--prompt-at 12.5 TEXT` becomes one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        joined: list[str] = []
        for word in args:
            if _lacks_prompt(*["", "", *joined][-2:]) and not word.startswith("--"):
                joined[-1] += f" {word}"
            else:
                joined.append(word)
        return super().parse_args(ctx, joined)


def _lacks_prompt(before: str, word: str) -> bool:
    """Whether it is the time of a `--prompt-at`, and no text is with it yet."""
    is_ours = before == "--prompt-at" or word.startswith("--prompt-at=")
    return is_ours and " " not in word


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Long videos with video diffusion transformers.",
)


_SAME_STOP_S = 3.0  # a second Ctrl-C within this time must not cut the clean-up of the first short


def main() -> None:
    """Entry point of the `longreel` command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # presets hold Chinese and paths any bytes, whatever the locale can spell
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"longreel {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    pass


def render(
    prompt: Annotated[str, typer.Argument(help="What the video shows.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Configuration, e.g. sampling.steps=20; --dry-run prints every field.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write; by default named after the prompt."),
    ] = None,
    preset: PresetOption = None,
    frames: FramesOption = None,
    seed: Annotated[int, typer.Option(help="Another seed, another video.")] = 0,
    image: ImageOption = None,
    prompt_at: Annotated[
        list[str] | None,
        typer.Option(metavar="SECONDS PROMPT", help="Another prompt from then on; repeatable."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="The same from a YAML file of `seconds: prompt` lines.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would happen, load nothing.")
    ] = False,
    home: HomeOption = None,
) -> None:
    """Render a prompt to a video file."""
    from ..configs.files import expand
    from ..configs.load import to_yaml
    from ..pipeline.plan import describe
    from .home.home import Home
    from .progress import progress
    from .prompt_file import read_prompts, split_prompt
    from .render import check_file, plan_render

    _check_words(prompt, overrides or ())
    plan = plan_render(
        prompt,
        preset=preset,
        frames=frames,
        seed=seed,
        image=image,
        prompt_at=[
            *map(split_prompt, prompt_at or ()),
            *(read_prompts(prompts) if prompts else ()),
        ],
        overrides=overrides or (),
    )
    target = expand(output or _default_name(prompt, seed, plan.config.output.suffix))
    if output or not dry_run:
        check_file(plan, target, Home(home).path)
    if dry_run:
        facts = re.sub("^", "# ", describe(plan), flags=re.MULTILINE)
        typer.echo(f"{to_yaml(plan.config)}\n{facts}")  # all of it a preset's file
        return
    run_and_export(Home(home).create(plan, target), target, {}, progress())


def doctor() -> None:
    """Print what is installed here, which kernels a render would run, and why."""
    from .doctor import describe_machine

    _in_columns(describe_machine())


def presets() -> None:
    """List the presets."""
    from ..configs.load import preset_summaries

    _in_columns(preset_summaries())


def _in_columns(rows: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        typer.echo(f"{name:{width}}  {text}")


def _default_name(prompt: str, seed: int, suffix: str) -> Path:
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].strip("-")
    return Path(f"{words or 'video'}-{seed}{suffix}")


def _check_words(prompt: str, overrides: Sequence[str]) -> None:
    """What a forgotten quote or a prompt in the wrong place looks like."""
    from ..configs.fields import fields

    if prompt.partition("=")[0] in fields():
        raise ValueError(
            f"prompt={prompt} is an override, so no prompt is left; put the prompt first: "
            f'longreel render "a cat" {prompt}'
        )
    for word in overrides:
        if "=" not in word:
            way_out = f'put a prompt of several words in quotes: longreel render "{prompt} {word}"'
            if word.startswith("-"):
                way_out = 'put options before the "--" that ends them'
            raise ValueError(
                f"{word!r} after the prompt sets nothing, as it is no key=value; {way_out}"
            )


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What went wrong in a sentence on stderr, and an exit code; a bug keeps its traceback."""
    stops: list[float] = []

    def stop(signum: int, frame: object) -> None:
        now = time.monotonic()
        if not stops or now - stops[-1] > _SAME_STOP_S:
            stops.append(now)
            raise KeyboardInterrupt

    previous = {
        signum: signal.signal(signum, stop)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(signum) is not signal.SIG_IGN  # as nohup and `&` want it
    }
    try:
        yield
    except BaseException as error:
        if stops:  # an import that is interrupted may say so in an error of its own
            _fail(f"stopped; {_way_on(error) or 'no incomplete file is left behind'}", 130)
        _explain(error)
        raise
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _explain(error: BaseException) -> None:
    """Ends the program if this is no bug."""
    if isinstance(error, BrokenPipeError):
        return  # who reads our output has enough; typer ends quietly
    if isinstance(error, ValueError):
        _fail(str(error), 2)
    if isinstance(error, OSError | RenderError | TrainingError):
        way_on = _way_on(error)
        _fail(f"{error}; {way_on}" if way_on else str(error), 1)
    if is_memory(error):
        _fail(
            f"the memory is not enough ({first_line(error)}); make video.height, "
            "video.width or video.frames smaller, set model.vae_tile=256 or "
            "model.dtype=bfloat16, or choose a smaller preset",
            1,
        )


def _way_on(error: BaseException) -> str:
    """How to go on, if whoever raised it has said so."""
    return "; ".join(getattr(error, "__notes__", []))


def _fail(message: str, code: int) -> NoReturn:
    print(f"longreel: {message}", file=sys.stderr)
    raise typer.Exit(code)


for _command in (
    *(render, doctor, presets, resume, renders, simulate, train, evaluate, serve),
    *(batch, submit, status, watch, logs, cancel, download, trace),
):
    _needs_words = _command in (render, resume, train)
    app.command(no_args_is_help=_needs_words)(_plain_errors()(_command))
