"""`longreel serve`."""

from pathlib import Path
from typing import Annotated

import typer


def serve(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Configuration of every render, e.g. model.device=cuda."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.", min=0, max=65535)] = 8500,
    home: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the queue and the renders; by default in the user's data folder."
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster that renders run on, host:port of its head.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Tokens of clients, a line each: TOKEN or NAME: TOKEN.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Of requests that name none; by default shapes.")
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Renders that are made at once.", min=1, max=256)
    ] = 1,
) -> None:
    """Serve renders over HTTP: a queue, live streams, an API and a page."""
    try:
        from .run_server import run_server
    except ImportError as error:
        raise ValueError(
            f"serve needs what its extra brings ({error.name} is missing); in the checkout: "
            "pip install -c constraints.txt -e '.[serve]'"
        ) from error
    ours = [f"parallel.address={address}", "parallel.backend=ray"] if address else []
    run_server(
        host=host,
        port=port,
        home=home,
        token_file=token_file,
        preset=preset,
        workers=workers,
        overrides=[*ours, *(overrides or ())],
    )
