"""`longreel train`."""

from typing import Annotated

import typer


def train(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A training we ship, or a .yaml file.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Configuration, e.g. steps=500."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and print the configuration, train nothing.")
    ] = False,
) -> None:
    """Train a model; the same command again goes on where it stopped."""
    from ...configs.train_load import load_training, training_yaml

    settings = load_training(config, overrides or ())
    from .store import RunFolder
    from .trainer import output_folder

    folder = output_folder(settings)
    if dry_run:
        RunFolder(folder).check(settings)
        typer.echo(training_yaml(settings), nl=False)
        return
    from .launch import train as run

    if run(settings):
        typer.echo(folder / "model")
        return
    kept = f"with a checkpoint in {folder}" if RunFolder(folder).last() else "before a checkpoint"
    typer.echo(f"stopped, {kept}; run the same command again to go on")
    raise typer.Exit(130)
