"""`longreel evaluate`: its options, and what it prints and writes."""

from pathlib import Path
from typing import Annotated

import typer

from ..options import PresetOption


def evaluate(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Configuration that all settings share."),
    ] = None,
    preset: PresetOption = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="Queue to render with; repeatable. By default auto.")
    ] = None,
    frames: Annotated[
        list[int] | None, typer.Option(help="Length of the clips; repeatable. By default 81.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(metavar='"KEY=VALUE ..."', help="Overrides to compare; repeatable."),
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="How many of the held-out prompts.")] = 64,
    truth: Annotated[
        bool,
        typer.Option(
            "--truth",
            help="Measure the world's own clips: the upper bound. With a preset: as its VAE "
            "encodes and decodes them.",
        ),
    ] = False,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for scores, contact sheet and plot.")
    ] = Path("evaluation"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be measured, render nothing.")
    ] = False,
) -> None:
    """Render held-out prompts of the world of shapes and measure what comes out.

    Clips that the folder already holds are not made again.
    """
    import json

    from .pictures import plot, sheet
    from .records import Record
    from .records import evaluate as measure_all
    from .settings import clips, make_settings
    from .table import describe, rows, text

    settings = make_settings(
        preset=preset,
        policies=policy or (),
        lengths=frames or [81],
        groups=setting or (),
        overrides=overrides or (),
        truth=truth,
    )
    if dry_run:
        for one in settings:
            typer.echo(f"{one.name}: {prompts} prompts")
        return

    def report(record: Record) -> None:
        typer.echo(describe(record), err=True)

    try:
        records = measure_all(clips(settings, prompts), output, report)
    except KeyboardInterrupt as error:
        error.add_note("the same command again goes on with the clips that are left")
        raise
    table = rows(records)
    sheet(records, output, output / "sheet.png")
    plot(table, records, output / "plot.png")
    typer.echo(json.dumps({"rows": table}) if as_json else text(table))
