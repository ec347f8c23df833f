"""`longreel resume` and `longreel renders`: what is in the home, and going on with it."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import HomeOption

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ..configs.schema import Config
    from ..pipeline.generator import Report
    from .home.folder import RenderFolder
    from .home.ledger import Status

# of a resumed render may change what changes no frame
_FREE = (
    "parallel.",
    "checkpoint.",
    "model.device",
    "model.checkpoint",
    "model.transformer",
    "model.text_cache",
    "model.lora",
)
_OLD_S = 7 * 86400.0
_UNITS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))


def resume(
    render: Annotated[str, typer.Argument(help="Its id, or the beginning of it.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="What changes no frame, e.g. parallel.num_stages=2."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write; by default as it was asked for."),
    ] = None,
    home: HomeOption = None,
    submit: Annotated[
        bool, typer.Option("--submit", help="As another Ray job, where `longreel submit` sent it.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            help="Dashboard of the cluster that it was sent to (--submit); by default as of submit."
        ),
    ] = None,
    extend: Annotated[
        str | None,
        typer.Option(metavar="N", help="More of a finished one: frames, or seconds as 12s."),
    ] = None,
    redo: Annotated[
        str | None,
        typer.Option(
            metavar="FROM..TO",
            help="A section of a finished one anew: frames as 32..64, or times as 2s..4s.",
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Of what --extend or --redo makes; by default as it was.")
    ] = None,
    prompt_at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SECONDS PROMPT", help="Another prompt in what --extend makes; repeatable."
        ),
    ] = None,
    drop: Annotated[
        bool, typer.Option("--drop", help="Without its edit that is not done: as it was before.")
    ] = False,
    wheel: Annotated[
        Path | None, typer.Option(help="The wheel that it was sent with, if it was (--submit).")
    ] = None,
) -> None:
    """Go on with a render whose process is gone, or with a finished one."""
    from .home.home import Home
    from .progress import progress

    is_edit = _check_edit(extend, redo, prompt, prompt_at or (), drop, submit)
    if submit:
        why = "as with --submit a render goes on where `longreel submit` has put it; leave one out"
        _check_unread({"output": output, "home": home}, why)
        from .submit.submit_cli import submit_again

        submit_again(render, address, wheel, overrides or ())
        return
    _check_unread(
        {"address": address, "wheel": wheel}, "as it is for --submit; give both or neither"
    )
    folder = Home(home).open(render)
    manifest = folder.manifest
    changes = _free_changes(overrides or (), manifest.config)
    wanted = output or Path(manifest.output or f"{folder.id}{manifest.config.output.suffix}")
    if drop:
        folder.drop()
    if is_edit:
        _edit(folder, wanted, changes, extend, redo, prompt, prompt_at or ())
    run_and_export(folder, wanted, changes, progress())


def _check_unread(options: Mapping[str, object], why: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"--{name}={value} would be ignored, {why}")


def _check_edit(
    extend: str | None,
    redo: str | None,
    prompt: str | None,
    prompt_at: Sequence[str],
    drop: bool,
    submit: bool,
) -> bool:
    """Whether there is to be one; ValueError where options do not go together."""
    if extend is not None and redo is not None:
        raise ValueError(
            f"extend={extend} and redo={redo} are two edits, and each needs the other's end; ask "
            "for one after the other"
        )
    edit = "extend" if extend is not None else "redo" if redo is not None else ""
    if submit and (edit or drop):
        raise ValueError(
            f"{edit or 'drop'} and --submit do not go together, as the render is on this machine; "
            "leave --submit out, and name a cluster with parallel.address"
        )
    if prompt is not None and not edit:
        raise ValueError(
            f"prompt={prompt!r} would be ignored: a render that goes on has its prompts; give "
            "--extend or --redo with it"
        )
    if prompt_at and edit != "extend":
        raise ValueError(
            f"prompt_at={prompt_at[0]!r} would be ignored: it is for what --extend makes; leave it "
            "out, or give --prompt to --redo"
        )
    return bool(edit)


def _edit(
    folder: "RenderFolder",
    output: Path,
    changes: dict[str, Any],
    extend: str | None,
    redo: str | None,
    prompt: str | None,
    prompt_at: Sequence[str],
) -> None:
    """Taken note of in its folder, where `resume` finds it after any interruption."""
    from ..configs.files import expand
    from .home import edits
    from .prompt_file import split_prompt
    from .spans import parse_length, parse_section

    _check_made(folder, expand(output))
    fps = folder.manifest.config.video.fps
    if extend is not None:
        frames = parse_length(extend, fps, folder.plan_with(changes).arch.vae.time_stride)
        times = [split_prompt(change) for change in prompt_at]
        edits.extend(folder, frames, prompt=prompt, prompt_at=times, changes=changes)
    if redo is not None:
        first, stop = parse_section(redo, fps)
        edit = edits.redo(folder, first, stop, prompt=prompt, changes=changes)
        typer.echo(
            f"frames {edit.first}..{edit.fade} are made anew (whole segments)"
            + (f", {edit.fade}..{edit.stop} blended" if edit.fade < edit.stop else ""),
            err=True,
        )


def renders(
    home: HomeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove what is finished or a week old, after asking.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """List the renders in the home."""
    from .home.home import Home

    if yes and not prune:
        raise ValueError(
            "--yes answers what --prune asks, and nothing was to be removed; give both"
        )
    if as_json and prune:
        raise ValueError("--json would be ignored, as --prune lists nothing; give one of them")
    place = Home(home)
    found = [(folder, folder.status()) for folder in place.renders(_left_out)]
    if prune:
        _prune(place, found, yes)
        return
    for folder, status in found:
        typer.echo(json.dumps(_facts(folder, status)) if as_json else _line(folder, status))
    if not found and not as_json:
        typer.echo(f"no renders in {place.path}")


def _left_out(why: str) -> None:
    typer.echo(f"left out: {why}", err=True)


def run_and_export(
    folder: "RenderFolder",
    output: Path,
    changes: dict[str, Any],
    bars: "AbstractContextManager[Report]",
) -> None:
    """To its end, and its file to where it is wanted."""
    from ..configs.files import expand
    from .home.home import way_on
    from .home.lock import Taken, read_by_us

    output, status = expand(output), folder.status()
    is_done = status.state == "done"
    if is_done:
        _check_made(folder, output)
    else:
        from .home.record import RenderRun
        from .render import check_file

        plan, home = folder.plan_with(changes), folder.path.parents[1]
        check_file(plan, output, home, status.frames_done)
    try:
        with read_by_us(folder.path):  # from before it is done, or it might be pruned then
            if not is_done:
                # Ray tells of a lost worker on stdout, which is for the file's name alone
                with redirect_stdout(sys.stderr), bars as report:
                    RenderRun(folder, report, changes=changes).run()
            folder.export(output)
    except Taken:
        raise
    except BaseException as error:
        error.add_note(way_on(folder))
        raise
    typer.echo(output)


def _check_made(folder: "RenderFolder", output: Path) -> None:
    """ValueError where what is there of it cannot be written; it needs no device, nor an end."""
    from .target import check_output

    config, made = folder.manifest.config, folder.status().frames_done
    height, width = config.video.height, config.video.width
    check_output(output, config.output, num_frames=made, height=height, width=width)


def _free_changes(overrides: Sequence[str], config: "Config") -> dict[str, Any]:
    from ..configs.load import parse_override

    changes = dict(parse_override(override) for override in overrides)
    for key, value in changes.items():
        if not key.startswith(_FREE):
            raise ValueError(
                f"{key}={value} would change the frames to come, and those before them are final; "
                f"leave it out, or render anew (a render that is resumed takes {', '.join(_FREE)})"
            )
        if key.startswith("model.lora"):
            _check_scales(key, value, getattr(config.model, key.removeprefix("model.")))
    return changes


def _check_scales(key: str, adapters: str, before: str) -> None:
    """Which files they are is known by their content."""
    from ..models.lora import split_adapters

    now, then = (
        [float(scale[1:] or 1) for _, scale in split_adapters(each)] for each in (adapters, before)
    )
    if now != then:
        raise ValueError(
            f"{key}={adapters} would add more or less than {key}={before}, with which the frames "
            "before were made; give the same adapters in the same order, each with its @SCALE"
        )


def _facts(folder: "RenderFolder", status: "Status") -> dict[str, Any]:
    return {
        "render": folder.id,
        **asdict(status),
        "bytes": folder.num_bytes(),
        "prompt": folder.manifest.prompt,
        "output": folder.manifest.output,
    }


def _line(folder: "RenderFolder", status: "Status") -> str:
    total = f"/{status.frames}" if status.frames else ""
    done = f"{status.frames_done}{total} frames"
    prompt = " ".join(folder.manifest.prompt.split())
    reason = f"  ({status.reason})" if status.reason else ""
    return (
        f"{folder.id}  {status.state:9}  {done:>15}  {_age(status.created_s):>7} ago  "
        f"{folder.num_bytes() / 1e6:8.1f} MB  {prompt[:40]}{reason}"
    )


def _age(since_s: float) -> str:
    seconds = max(0.0, time.time() - since_s)
    name, unit = next(((name, unit) for name, unit in _UNITS if seconds >= unit), _UNITS[-1])
    return f"{seconds / unit:.0f} {name}"


def _prune(place: Any, found: "list[tuple[RenderFolder, Status]]", yes: bool) -> None:
    from .home.lock import Taken

    now = time.time()
    going = [
        folder
        for folder, status in found
        if status.state in ("done", "cancelled")
        or (status.state != "running" and now - status.updated_s > _OLD_S)
    ]
    if not going:
        typer.echo("nothing to remove: no render is finished or a week old")
        return
    size = sum(folder.num_bytes() for folder in going) / 1e6
    for folder in going:
        typer.echo(f"{folder.id}  {' '.join(folder.manifest.prompt.split())[:60]}")
    if yes or typer.confirm(f"Remove these {len(going)} ({size:.1f} MB)?"):
        for folder in going:
            try:
                place.remove(folder)
            except Taken as error:  # by now
                typer.echo(f"left: {error}")
