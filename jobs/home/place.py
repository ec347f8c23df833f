"""Where renders are kept unless another place is named, and the commands that find them there."""

import os
import shlex
from pathlib import Path


def default_home() -> Path:
    """In the user's data folder."""
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    if data.startswith("~"):
        raise ValueError(
            "this user has no home folder, so there is nowhere to keep a render while it is made; "
            "name a folder with --home"
        )
    return Path(data) / "longreel"


def resume_command(folder: Path) -> str:
    """For the render in this folder, as it is found from anywhere."""
    return f"longreel resume {folder.name}{_named(folder.absolute().parent.parent)}"


def renders_command(home: Path) -> str:
    """What lists those that are there."""
    return f"longreel renders{_named(home)}"


def _named(home: Path) -> str:
    try:
        is_default = default_home().absolute() == home.absolute()
    except ValueError:  # there is none
        is_default = False
    return "" if is_default else f" --home {shlex.quote(str(home.absolute()))}"
