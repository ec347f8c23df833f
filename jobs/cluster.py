"""Connecting to the Ray cluster that a render names, or starting one that ends with it."""

import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..configs.errors import first_line
from ..configs.parallel import ParallelConfig
from ..pipeline.backend import Backend, LocalBackend
from ..pipeline.plan import Plan
from ..pipeline.ray_backend import RayBackend

_log = logging.getLogger("longreel")
_PROBE_S = 3.0  # for a head to accept a connection
_STORE_BYTES = 256 * 2**20  # frames and finished blocks on their way; what is more goes to disk


def open_backend(plan: Plan, hear: Callable[[str], None] = _log.warning) -> Backend:
    """As the plan says; a connection that is made here is given up when the backend is closed.

    `hear` is told of failures that the render survives.
    """
    return LocalBackend(plan) if plan.backend == "local" else open_ray(plan, hear)


def open_ray(plan: Plan, hear: Callable[[str], None], stays: bool = False) -> RayBackend:
    """`stays`: for one render after the other; `end` it."""
    disconnect = connect(plan.config.parallel)
    try:
        return RayBackend(plan, at_end=disconnect, hear=hear, stays=stays)
    except BaseException:
        disconnect()
        raise


def connect(parallel: ParallelConfig) -> Callable[[], None]:
    """Returns what undoes it: nothing, where this process was connected before."""
    if parallel.address == "local":
        _set_token()
    import ray

    if ray.is_initialized():
        return lambda: None
    with _signals_kept():
        if parallel.address == "local":
            _start(parallel)
        else:
            _reach(parallel.address)
    return ray.shutdown


def _set_token() -> None:
    """A private cluster's ports are open to the network: only this process shall use them.

    Ray reads its mode when it is imported; imported before, it chooses token mode by itself. The
    token stays for good, as Ray reads it once.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ.get("RAY_AUTH_MODE", "token") == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _start(parallel: ParallelConfig) -> None:
    """A cluster of this machine alone, for this process alone."""
    import ray

    # Ray's own 15 starves the stages beside anything that works
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(
        address="local",
        num_cpus=max(parallel.num_devices, os.cpu_count() or 1),  # stages share them if need be
        object_store_memory=_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def _reach(address: str) -> None:
    import ray

    host, _, port = address.rpartition(":")
    way_out = "start it with `ray start --head`, or set parallel.address=local for a private one"
    if address.startswith("ray://") or not (host and port.isdigit()):
        raise ValueError(
            f"parallel.address={address} is no host:port of a Ray head, so no stage can be placed; "
            "give its address as `ray start --head` prints it, and render on a machine of the "
            "cluster, or as a Ray job"
        )
    try:
        speaks = _speaks_grpc(host, int(port))
    except OSError as error:
        raise ValueError(
            f"parallel.address={address} cannot be reached ({error}), so no stage can be placed; "
            f"{way_out}"
        ) from error
    if not speaks and os.environ.get("RAY_USE_TLS", "0") == "0":
        raise ValueError(
            f"parallel.address={address} answers, but not as a Ray head does, so no stage can be "
            f"placed; give the address that `ray start --head` prints (its port is usually 6379)"
        )
    try:
        ray.init(
            address=address, namespace="longreel", log_to_driver=False, logging_level=logging.ERROR
        )
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        raise ValueError(
            f"parallel.address={address} answers, but not as a Ray cluster this process can join "
            f"({first_line(error)}); {way_out}"
        ) from error


def _speaks_grpc(host: str, port: int) -> bool:
    """Whether the first frame that comes back is HTTP/2's: Ray itself would try for minutes."""
    settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    with socket.create_connection((host, port), timeout=_PROBE_S) as probe:
        try:
            probe.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
            answer = probe.recv(9)
        except OSError:
            return False
    return len(answer) > 3 and answer[3] == 4


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray replaces the handler of SIGTERM; whoever set one relies on it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
