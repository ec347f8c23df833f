"""The parts of a model that stay loaded from one render to the next."""

from collections.abc import Callable

from ...pipeline.backend import Backend, LocalBackend
from ...pipeline.plan import Plan
from ...pipeline.shelf import Shelf
from ..cluster import open_backend


class WarmBackends:
    """One model's at a time: another one's takes their place."""

    def __init__(self) -> None:
        self._shelf = Shelf()
        self._local: LocalBackend | None = None

    def open(self, plan: Plan, hear: Callable[[str], None]) -> Backend:
        self._local = None
        if plan.backend != "local":
            return open_backend(plan, hear)
        self._local = LocalBackend(plan, self._shelf)
        return self._local

    def busy_s(self) -> list[float]:
        """Of each stage, since its chain began; empty where it is not known here."""
        return [round(stage.busy_s, 4) for stage in self._local.stages] if self._local else []
