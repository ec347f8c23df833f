"""What several commands are asked in the same words."""

from pathlib import Path
from typing import Annotated

import typer

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of renders; by default in the user's data folder."),
]
PresetOption = Annotated[
    str | None, typer.Option(help="Model and settings to start from; by default shapes.")
]
FramesOption = Annotated[
    int | None, typer.Option(help="Number of frames; by default the preset's.")
]
ImageOption = Annotated[Path | None, typer.Option(help="Picture the video starts from.")]
