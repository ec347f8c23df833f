"""`longreel simulate`: its options, and what it prints."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..configs.checks import counted

if TYPE_CHECKING:
    from ..pipeline.cost import Cost, Seconds, Speed
    from .simulate import Setting


def _number(text: str) -> Any:
    return typer.Option(help=f"{text}; by default the policy's.", show_default=False)


def simulate(
    policy: Annotated[
        str | None,
        typer.Option(help="Queue to simulate; by default the preset's, or dualparal-grouped."),
    ] = None,
    stages: Annotated[
        int | None, typer.Option(help="Slices of the model's layers; by default 8, if it has them.")
    ] = None,
    cfg: Annotated[
        str | None,
        typer.Option(
            help="batch, or split: stages for each branch of guidance; by default as configured."
        ),
    ] = None,
    blocks: Annotated[
        int | None, typer.Option(help="Length of the video in blocks; by default 33.")
    ] = None,
    latents: Annotated[int | None, typer.Option(help="Its length in latents, instead.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of a block; by default the preset's, or 50.")
    ] = None,
    size: Annotated[int | None, _number("Latents of a block")] = None,
    left: Annotated[int | None, _number("Latents of context before it")] = None,
    right: Annotated[int | None, _number("Latents of context after it")] = None,
    sink: Annotated[int | None, _number("First latents that all see")] = None,
    stagger: Annotated[int | None, _number("Steps a block is behind its neighbour")] = None,
    window: Annotated[int | None, _number("Latents of a forward (forcing)")] = None,
    depth: Annotated[int | None, _number("Stages the order is made for")] = None,
    new_prompt: Annotated[
        list[int] | None,
        typer.Option(
            metavar="BLOCK",
            help="Block with another prompt, cached keys made again (causal); repeatable.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Model to count seconds and bytes of; by default slots alone."),
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(help="What a device reaches, with --preset; by default 100.")
    ] = None,
    gbytes: Annotated[
        float | None,
        typer.Option(help="What a link carries a second, in GB, with --preset; by default 25."),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this machine instead of --tflops.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="All policies and stage counts side by side.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="PNG of what each stage does when.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run a schedule against a model of the machine: when frames come, who waits, what it takes."""
    import json

    from . import simulate as simulation
    from .simulate_text import describe, table

    setting = simulation.make_setting(
        preset=preset,
        policy=policy,
        steps=steps,
        num_blocks=blocks,
        num_latents=latents,
        num_stages=stages,
        cfg=cfg,
        numbers={
            "size": size,
            "left": left,
            "right": right,
            "sink": sink,
            "stagger": stagger,
            "window": window,
            "depth": depth,
        },
        new_prompts=new_prompt or (),
    )
    speed = _speed(tflops, gbytes, with_model=preset is not None, calibrated=calibrate)
    if plot is not None:
        plot = _check_plot(plot)
    cost = _cost(setting, speed, calibrate)
    if plot is not None:
        _plot(setting, cost, plot)
    if compare:
        rows = list(simulation.compare(setting, cost))
        flat = {"rows": [row.flat() for row in rows]}
        typer.echo(json.dumps(flat) if as_json else table(rows))
        return
    row = simulation.run(setting, cost)
    typer.echo(json.dumps(row.flat()) if as_json else describe(row))


def _speed(
    tflops: float | None, gbytes: float | None, *, with_model: bool, calibrated: bool
) -> "Speed":
    """ValueError for one that is none, or that nothing here would read."""
    from ..pipeline.cost import Speed

    for name, value in (("tflops", tflops), ("gbytes", gbytes)):
        if value is None:
            continue
        if not 0 < value < float("inf"):
            raise ValueError(f"--{name}={value:g} is no speed; give a number above 0")
        if not with_model:
            raise ValueError(
                f"--{name}={value:g} would be ignored, as slots are counted in place of seconds "
                "where no model is named; name one with --preset, or leave it out"
            )
    if calibrated and tflops is not None:
        raise ValueError(
            f"--tflops={tflops:g} would be ignored, as --calibrate measures this machine; leave "
            "one of them out"
        )
    return Speed(flops=(tflops or 100) * 1e12, bytes_per_s=(gbytes or 25) * 1e9)


def _cost(setting: "Setting", speed: "Speed", calibrated: bool) -> "Cost | None":
    """None where no model was named: then there are slots alone."""
    if setting.config is None:
        if calibrated:
            raise ValueError("--calibrate has no model to measure; name one with --preset")
        return None
    return setting.cost(_measure(setting, speed)) if calibrated else setting.estimate(speed)


def _measure(setting: "Setting", speed: "Speed") -> "Seconds":
    """Kept, too, for renders of the same window on this device."""
    from dataclasses import replace

    from ..pipeline.calibrate import calibrate
    from ..pipeline.measured import keep, make_case
    from ..pipeline.plan import DTYPES, find_device

    assert setting.config is not None
    model, video = setting.config.model, setting.config.video
    device, folder = find_device(model.device), setting.config.parallel.calibration
    seconds = calibrate(
        setting.arch,
        setting.schedule,
        height=video.height,
        width=video.width,
        device=device,
        dtype=DTYPES[model.dtype],
        vae_dtype=DTYPES[model.vae_dtype],
    )
    if folder and (
        path := keep(folder, make_case(setting.config, setting.schedule, device), seconds)
    ):
        typer.echo(f"calibration: {path}", err=True)
    return replace(seconds, byte=1 / speed.bytes_per_s)


def _check_plot(path: Path) -> Path:
    """Before anything is measured."""
    from ..configs.files import expand
    from .target import check_folder

    if path.suffix.lower() != ".png":
        raise ValueError(f"--plot={path} is written as PNG; give a name that ends in .png")
    path = expand(path)
    check_folder("--plot", path)
    return path


def _plot(setting: "Setting", cost: "Cost | None", path: Path) -> None:
    from ..pipeline.cost import Cost
    from ..pipeline.plot import plot
    from ..pipeline.timeline import play

    unit = "slots" if cost is None else "s"
    cost = cost or Cost(num_layers=setting.num_stages, branches=1 + (setting.cfg == "split"))
    timeline = play(setting.schedule, setting.num_stages, cost)
    title = (
        f"{setting.blocks.policy}: {counted(setting.schedule.num_blocks or 0, 'block')}, "
        f"{counted(setting.steps, 'step')}, {counted(setting.num_stages, 'stage')}"
    )
    plot(timeline, path, title, unit)
    typer.echo(f"timeline: {path}", err=True)
