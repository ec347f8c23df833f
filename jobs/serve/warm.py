"""The parts of a model that stay loaded from one render to the next."""

from ...pipeline.backend import Backend, LocalBackend
from ...pipeline.plan import Plan
from ...pipeline.shelf import Shelf
from ..cluster import open_backend


class WarmBackends:
    """One model's at a time: another one's takes their place."""

    def __init__(self) -> None:
        self._shelf = Shelf()

    def open(self, plan: Plan) -> Backend:
        if plan.backend == "local":
            return LocalBackend(plan, self._shelf)
        return open_backend(plan)
