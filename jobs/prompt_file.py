"""Which prompt begins at which second, as people write it down."""

from pathlib import Path

from ..configs.errors import first_line
from ..configs.files import Repeated, expand, load_yaml


def split_prompt(change: str) -> tuple[float, str]:
    """Of the command line: `12.5 a dog runs`."""
    second, _, text = change.partition(" ")
    try:
        return float(second), text
    except ValueError:
        raise ValueError(
            f"prompt_at={change!r} does not begin with a time, so it is unknown when it applies; "
            'give seconds and a prompt: --prompt-at 12.5 "a dog runs"'
        ) from None


def read_prompts(path: Path) -> list[tuple[float, str]]:
    """YAML, a line per change: `12.5: a dog runs`."""
    import yaml

    try:
        content = load_yaml(expand(path).read_text(encoding="utf-8"))
    except Repeated:
        raise ValueError(
            f"prompts={path} has two prompts for one second, and one would be lost; leave one out"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(
            f"prompts={path} cannot be read ({first_line(error)}); give a YAML file with "
            "lines such as `12.5: a dog runs`"
        ) from error
    return changes_of(content, f"prompts={path}")


def changes_of(content: object, where: str) -> list[tuple[float, str]]:
    """Of such lines, as YAML reads them."""
    if not isinstance(content, dict) or not all(
        isinstance(second, int | float) and isinstance(text, str)
        for second, text in content.items()
    ):
        raise ValueError(
            f"{where} is no list of seconds and prompts; write lines such as `12.5: a dog runs`"
        )
    return sorted((float(second), text) for second, text in content.items())
