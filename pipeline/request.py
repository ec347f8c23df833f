"""What is asked for, before anybody has looked whether it can be met."""

from dataclasses import dataclass
from pathlib import Path

from ..configs.schema import Config
from .section import Section


@dataclass(frozen=True, kw_only=True)
class Request:
    """One video somebody wants."""

    prompt: str
    config: Config
    seed: int = 0
    image: Path | None = None
    prompt_at: tuple[tuple[float, str], ...] = ()  # seconds, and the prompt from then on
    max_inflight: int | None = None  # blocks, where memory was not enough for the policy's number
    section: Section | None = None  # of a video that is there: what is to be made; none: all
