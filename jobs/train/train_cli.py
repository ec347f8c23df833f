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
) -> None:
    """Train a model; the same command again goes on where it stopped."""
    from ...configs.train_load import load_training

    settings = load_training(config, overrides or ())
    from .launch import train as run
    from .trainer import output_folder

    folder = output_folder(settings)
    if run(settings):
        typer.echo(folder / "model")
        return
    typer.echo(f"stopped, with a checkpoint in {folder}; run the same command again to go on")
    raise typer.Exit(130)
