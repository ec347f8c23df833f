"""`longreel submit`, `status`, `watch`, `logs`, `cancel`, `download`: renders as Ray jobs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options import FramesOption, ImageOption, PresetOption

if TYPE_CHECKING:
    from .jobs_client import Jobs

Address = Annotated[
    str | None,
    typer.Option(
        help="Dashboard of the cluster; by default RAY_API_SERVER_ADDRESS, or this machine's."
    ),
]
Render = Annotated[str, typer.Argument(help="The id that `longreel submit` printed.")]


def submit(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT|FILE.yaml", help="What to render.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Configuration, e.g. sampling.steps=20."),
    ] = None,
    address: Address = None,
    gpus: Annotated[
        int | None,
        typer.Option(help="Stages, each on a device of its own; by default as configured.", min=1),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until it is over.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write; waits for it.")
    ] = None,
    preset: PresetOption = None,
    frames: FramesOption = None,
    seed: Annotated[
        int | None, typer.Option(help="Another seed, another video; by default 0.")
    ] = None,
    image: ImageOption = None,
    home: Annotated[
        Path | None,
        typer.Option(
            help="Folder of renders that all machines of the cluster see; by default in the user's "
            "data folder, there."
        ),
    ] = None,
    wheel: Annotated[
        Path | None, typer.Option(help="A wheel of longreel, where none is installed there.")
    ] = None,
) -> None:
    """Render on a Ray cluster, as a job; prints its id."""
    from ...configs.files import expand
    from ...configs.load import load_config
    from ..home.home import new_name
    from ..render import check_once, plan_render
    from ..target import check_target
    from .errand import Errand, read_request

    values: dict[str, Any] = {"prompt": prompt}
    if prompt.endswith((".yaml", ".yml")):
        values = read_request(Path(prompt))
    given = {"preset": preset, "frames": frames, "seed": seed, "image": image and str(image)}
    values |= {name: value for name, value in given.items() if value is not None}
    values["overrides"] = [*values.get("overrides", ()), *(overrides or ())]
    # what is wrong with it is said here, not in a log far away; devices are the cluster's
    load_config(values.get("preset"), values["overrides"])
    there = ["model.device=auto"]
    if gpus is not None:
        check_once("--gpus", gpus, "parallel.num_stages", values["overrides"])
        there += ["parallel.backend=ray", f"parallel.num_stages={gpus}"]
    plan = plan_render(**values | {"overrides": [*values["overrides"], *there]})
    if output:
        check_target(output := expand(output), plan.config.output)
    errand = Errand(
        render=new_name(),
        home=str(expand(home).absolute()) if home else None,  # a job has a folder of its own
        stages=gpus,
        **values,
    )
    jobs = _jobs(address)
    jobs.submit(errand, wheel=wheel)
    typer.echo(errand.render)
    if wait or output:
        _watch(jobs, errand.render)
    if output:
        _export(jobs, errand.render, output)


def submit_again(
    render: str, address: str | None, wheel: Path | None, overrides: Sequence[str]
) -> None:
    """`longreel resume --submit`: another job for a render whose last one is over."""
    if overrides:
        raise ValueError(
            f"{overrides[0]} would be ignored, as --submit goes on with the stages that it was "
            "sent with; leave it out, or resume on a machine of the cluster"
        )
    typer.echo(_jobs(address).submit_again(render, wheel=wheel))


def status(render: Render, address: Address = None) -> None:
    """How a submitted render stands."""
    seen = _jobs(address).view(render)
    typer.echo(f"{seen.render}  {seen.state}  job {seen.job}")
    for what, fact in seen.progress.items():
        typer.echo(f"  {what} {fact['done']} of {fact['total']}")
    if seen.state == "failed" and seen.message:
        typer.echo(f"  {seen.message}")


def watch(render: Render, address: Address = None) -> None:
    """Follow a submitted render until it is over."""
    _watch(_jobs(address), render)


def logs(render: Render, address: Address = None) -> None:
    """What a submitted render's newest job has printed."""
    typer.echo(_jobs(address).log(render), nl=False)


def cancel(render: Render, address: Address = None) -> None:
    """End a submitted render; `longreel resume --submit` goes on with it."""
    state = _jobs(address).cancel(render)
    typer.echo(f"{render} is {state}" if state else f"{render} is being cancelled")


def download(
    render: Render,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")],
    address: Address = None,
) -> None:
    """The video of a submitted render, as far as it is final."""
    from ...configs.files import expand

    _export(_jobs(address), render, expand(output))
    typer.echo(output)


def _watch(jobs: "Jobs", render: str) -> None:
    from .jobs_client import NoAnswerError

    shown, way_on = "", f"the job itself goes on, and `longreel watch {render}` follows it again"
    try:
        for seen in jobs.wait(render):
            parts = [f"{w} {f['done']}/{f['total']}" for w, f in seen.progress.items()]
            line = "  ".join([seen.state, *parts])
            if line != shown:
                typer.echo(line, err=True)
                shown = line
    except KeyboardInterrupt as error:
        error.add_note(way_on)
        raise
    except NoAnswerError as error:
        raise OSError(f"the cluster has not answered for too long ({error}); {way_on}") from error
    if seen.state != "done":
        why = f": {seen.message}" if seen.state == "failed" and seen.message else ""
        raise OSError(
            f"render {render} is {seen.state}{why}; `longreel logs {render}` says more, and "
            f"`longreel resume --submit {render}` goes on with it"
        )


def _export(jobs: "Jobs", render: str, output: Path) -> None:
    from ..home.home import Home

    home = jobs.home(render)
    try:
        folder = Home(home).open(render)
    except ValueError as error:
        raise ValueError(
            f"render {render} lies in {home or 'the data folder'} of the cluster, which is not to "
            "be seen from here; give --home a folder that both share when you submit, or use "
            "`longreel serve` on the cluster and its client"
        ) from error
    folder.export(output)


def _jobs(address: str | None) -> "Jobs":
    from .jobs_client import Jobs

    return Jobs(address or os.environ.get("RAY_API_SERVER_ADDRESS"))
