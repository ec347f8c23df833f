"""The parts of a model that stay loaded from one render to the next, here or on a cluster."""

import logging
import threading
from collections.abc import Callable, Hashable

from ...models.shelf import Shelf
from ...pipeline.backend import Backend, LocalBackend
from ...pipeline.parts import fingerprints
from ...pipeline.plan import Plan
from ...pipeline.ray_backend import RayBackend
from ..cluster import open_ray

_log = logging.getLogger("longreel")


class WarmBackends:
    """One model's at a time: another one's takes their place."""

    def __init__(self) -> None:
        self._shelf = Shelf()
        self._backend: Backend | None = None
        self._ray: RayBackend | None = None  # with its actors and their devices
        self._fits: Hashable = None  # the renders that those are for

    def open(self, plan: Plan, given_up: threading.Event, hear: Callable[[str], None]) -> Backend:
        self._backend = self._open(plan, given_up, hear)
        return self._backend

    def release(self) -> None:
        """Devices of a cluster, which others may wait for."""
        ray, self._ray = self._ray, None
        try:
            if ray is not None:
                ray.end()
        except Exception as error:  # a cluster that is gone has let go of them already
            _log.warning("devices could not be given back (%s)", error)

    def busy_s(self) -> list[float]:
        """Of each stage, since its chain began."""
        return [] if self._backend is None else [round(s, 4) for s in self._backend.busy_s()]

    def _open(self, plan: Plan, given_up: threading.Event, hear: Callable[[str], None]) -> Backend:
        config, before = plan.config, self._fits
        local = plan.backend == "local"
        self._fits = _content(plan), () if local else (config.parallel, plan.policy == "whole")
        if local:
            self.release()
            if self._fits != before:
                self._shelf = Shelf()
            return LocalBackend(plan, self._shelf)
        ray = self._ray if self._fits == before else None
        if ray is not None and self._renewed(ray, plan, given_up, hear):
            return ray
        self.release()
        self._shelf = Shelf()
        self._ray = open_ray(plan, given_up, hear, stays=True)
        return self._ray

    def _renewed(
        self,
        ray: RayBackend,
        plan: Plan,
        given_up: threading.Event,
        hear: Callable[[str], None],
    ) -> bool:
        try:
            return ray.renew(plan, given_up, hear)
        except Exception as error:  # whatever it is, to begin anew finds out or goes well
            _log.warning("the last render's actors cannot be used again (%s)", error)
            return False


def _content(plan: Plan) -> Hashable:
    """Of a model: its files may be others under the same names, those of a cluster apart, which are
    not seen from here."""
    is_here = plan.config.parallel.address == "local"
    return plan.config.model, tuple(fingerprints(plan).items()) if is_here else ()
