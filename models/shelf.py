"""Loaded parts of one model, kept for the next render that wants the same."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Shelf:
    """Not for two threads at once. What another model had is let go before the new one loads."""

    def __init__(self, keep: bool = True) -> None:
        """`keep=False`: everything is loaded each time."""
        self._keep = keep
        self._model: Hashable = None
        self._parts: dict[Hashable, Any] = {}

    def get(self, model: Hashable, part: Hashable, load: Callable[[], T]) -> T:
        """That part of that model."""
        if not self._keep:
            return load()
        if model != self._model:
            self._parts.clear()
            self._model = model
        if part not in self._parts:
            self._parts[part] = load()
        made: T = self._parts[part]
        return made
