"""Where renders are kept unless another place is named, and the command that goes on with one."""

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
    home = folder.absolute().parent.parent
    place = "" if _is_default(home) else f" --home {shlex.quote(str(home))}"
    return f"longreel resume {folder.name}{place}"


def _is_default(home: Path) -> bool:
    try:
        return default_home().absolute() == home
    except ValueError:  # there is none
        return False
