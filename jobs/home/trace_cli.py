"""`longreel trace`."""

from pathlib import Path
from typing import Annotated

import typer

from ..options import HomeOption


def trace(
    render: Annotated[str, typer.Argument(help="Its id, or the beginning of it.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write; by default RENDER.trace.json."),
    ] = None,
    home: HomeOption = None,
) -> None:
    """Write what a render did when, for chrome://tracing or Perfetto."""
    from ...configs.files import expand
    from ..target import check_folder
    from .home import Home
    from .trace import write_trace

    folder = Home(home).open(render)
    path = expand(output) if output else Path(f"{folder.id}.trace.json")
    check_folder("output", path)
    spans = write_trace(folder.path, path)
    typer.echo(f"{path}: {spans} spans")
