"""`longreel batch`: a file of prompts to a folder of videos, over a server."""

from pathlib import Path
from typing import Annotated

import typer


def batch(
    file: Annotated[Path, typer.Argument(help="CSV with a column `prompt`, or JSON lines.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the videos.")],
    url: Annotated[
        str | None, typer.Option(help="Of the server; by default LONGREEL_URL, or this machine's.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with the token; by default LONGREEL_TOKEN is read.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Renders in the queue at once.", min=1)] = 4,
) -> None:
    """Render many prompts; given again, it goes on where it was."""
    import httpx

    from .client import Client
    from .errors import ServerError
    from .http import read_token

    token = None if token_file is None else read_token(token_file)
    with Client(url, token) as client:
        try:
            result = client.batch(file, out, concurrency=concurrency)
        except KeyboardInterrupt as error:
            error.add_note("the server goes on with what it has; the same command again fetches it")
            raise
        except (httpx.TransportError, ServerError) as error:
            raise OSError(str(error)) from error
    typer.echo(f"{len(result.done)} of {len(result.items)} videos in {out}")
    if result.failed:
        first = result.failed[0]
        raise OSError(
            f"{len(result.failed)} of {len(result.items)} failed, the first of them {first.name} "
            f"({first.message}); give the same command again for those alone"
        )
