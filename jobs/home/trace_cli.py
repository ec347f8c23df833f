"""`longreel trace`."""

from pathlib import Path
from typing import Annotated

import typer


def trace(
    render: Annotated[str, typer.Argument(help="Its id, or the beginning of one.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="By default RENDER.trace.json.")
    ] = None,
    home: Annotated[Path | None, typer.Option(help="Folder of renders.")] = None,
) -> None:
    """Write what a render did when, for chrome://tracing or Perfetto."""
    from .home import Home
    from .trace import write_trace

    folder = Home(home).open(render)
    path = output or Path(f"{folder.id}.trace.json")
    spans = write_trace(folder.path, path)
    print(f"{path}: {spans} spans")
