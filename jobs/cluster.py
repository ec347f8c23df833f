"""Connecting to the Ray cluster that a render names, or starting one that ends with it."""

import contextlib
import ctypes
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from functools import partial

from ..configs.errors import first_line
from ..pipeline.backend import Backend, LocalBackend, check_wanted
from ..pipeline.plan import Plan
from ..pipeline.ray_backend import RayBackend

_log = logging.getLogger("longreel")
_PROBE_S = 3.0  # for a head to accept a connection
_LOOK_S = 0.1  # how soon a wait notices that the render was given up
_STORE_BYTES = 256 * 2**20  # frames and finished blocks on their way; what is more goes to disk
_SIGACTION_BYTES = 512  # more than C's struct has anywhere
# Ray would say it on stdout, whoever writes there; we say it where it is of use
_UNSAID = "A worker died|killed due to|has been marked dead|worker processes have been started"
_PRIVATE_CPUS = 1024  # of no machine: stages share those there are, as they do in one process

_connecting = threading.Lock()
_connections: "list[_Connection]" = []  # that were made here: one at most


def open_backend(
    plan: Plan, given_up: threading.Event, hear: Callable[[str], None] = _log.warning
) -> Backend:
    """As the plan says; a connection that is made here is given up when the backend is closed.

    `given_up` ends what is waited for; `hear` is told of failures that the render survives.
    """
    return LocalBackend(plan) if plan.backend == "local" else open_ray(plan, given_up, hear)


def open_ray(
    plan: Plan, given_up: threading.Event, hear: Callable[[str], None], stays: bool = False
) -> RayBackend:
    """`stays`: for one render after the other; `end` it."""
    disconnect = connect(plan.config.parallel.address, partial(check_wanted, given_up))
    try:
        return RayBackend(plan, given_up, at_end=disconnect, hear=hear, stays=stays)
    except BaseException:
        disconnect()
        raise


def connect(address: str, check: Callable[[], None] = lambda: None) -> Callable[[], None]:
    """To parallel.address. Returns what undoes it, once: nothing, where somebody else has connected
    this process. `check` is called now and then, and may raise.

    A process is on one cluster at a time, so renders at the same time share a connection, and the
    last of them gives it up.
    """
    while not _connecting.acquire(timeout=_LOOK_S):
        check()
    try:
        if _connections and _connections[0].is_over:  # its making or its end was interrupted
            _connections[0].close(check)
            _connections.clear()
        if not _connections:
            _set_up(address)
            import ray

            if ray.is_initialized():
                if address != "local":
                    _check_joined(address)
                return lambda: None
            _connections.append(_Connection(address))
            _connections[0].wait(check)
        connection = _connections[0]
        if address != connection.address:
            raise ValueError(
                f"parallel.address={address} cannot be joined while another render of "
                f"this process is on parallel.address={connection.address}, as a process is on one "
                "cluster at a time; set the same, wait for it to end, or use another process"
            )
        connection.num_renders += 1
    finally:
        _connecting.release()
    left = contextlib.ExitStack()
    left.callback(_leave, connection)
    return left.close


def _leave(connection: "_Connection") -> None:
    with _connecting:
        connection.num_renders -= 1
        if not connection.num_renders:
            connection.close()
            _connections.clear()


class _Connection:
    """Of this process to a cluster.

    In a thread of its own, as Linux ends what Ray starts for a private one with the thread that
    started it, which a render may outlive. And Ray replaces the handler of SIGTERM in the main one.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.num_renders = 0
        self._made = Future[None]()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._stay, name="longreel-cluster", daemon=True)
        self._thread.start()

    def wait(self, check: Callable[[], None]) -> None:
        """Until it is made. What interrupts this ends it, and is not kept waiting."""
        try:
            while not wait([self._made], _LOOK_S).done:
                check()
            self._made.result()
        except BaseException:
            self._over.set()
            raise

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def _stay(self) -> None:
        import ray

        try:
            with _sigterm_kept():
                if self.address == "local":
                    _start()
                else:
                    _reach(self.address)
        except BaseException as error:
            self._made.set_exception(error)
            return
        self._made.set_result(None)
        self._over.wait()
        with _sigterm_kept():
            ray.shutdown()

    def close(self, check: Callable[[], None] = lambda: None) -> None:
        self._over.set()
        while self._thread.is_alive():
            self._thread.join(_LOOK_S)
            check()


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """What SIGTERM does to this process stays as it is, or as its program makes it meanwhile.

    Ray's C++ takes it for a crash: it prints a stack, and three seconds later it aborts, whatever
    is yet to be put away; once it is shut down, the signal kills. Python sets handlers in the main
    thread alone, and this is another.
    """
    libc, kept = ctypes.CDLL(None), ctypes.create_string_buffer(_SIGACTION_BYTES)
    before = signal.getsignal(signal.SIGTERM)
    libc.sigaction(signal.SIGTERM, None, kept)
    try:
        yield
    finally:
        now = object()
        while now is not signal.getsignal(signal.SIGTERM):  # or it was set while we set ours
            now = signal.getsignal(signal.SIGTERM)
            if now is before:
                libc.sigaction(signal.SIGTERM, kept, None)
            else:
                ctypes.pythonapi.PyOS_setsig(signal.SIGTERM, _in_c(now))


def _in_c(handler: object) -> ctypes.c_void_p:
    """What C has where Python has this handler: for all that are functions, the same one."""
    if isinstance(handler, signal.Handlers):
        return ctypes.c_void_p(handler)
    find = ctypes.pythonapi.PyOS_getsig
    find.restype = ctypes.c_void_p
    heard = {one for one in signal.Signals if callable(signal.getsignal(one))}
    others = heard - {signal.SIGTERM}  # what C has for this one may be Ray's
    return ctypes.c_void_p(find(min(others or heard)))


def _set_up(address: str) -> None:
    """Before Ray is imported, when it reads its settings.

    A private cluster's ports are open to the network: only this process shall use them. Imported
    before, Ray chooses token mode by itself. The token stays for good, as Ray reads it once.
    """
    # else a call that finds no cluster any more would begin another, open to everybody
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", _UNSAID)
    if address != "local":
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ.get("RAY_AUTH_MODE", "token") == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _check_joined(address: str) -> None:
    """ValueError unless this process is on that cluster, however its head is spelt."""
    import ray

    joined = str(ray.get_runtime_context().gcs_address)
    if _resolved(address) != _resolved(joined):
        raise ValueError(
            f"parallel.address={address} cannot be joined, as ray.init has put this process on "
            f"{joined}, and it is on one cluster at a time; leave parallel.address out to render "
            "there, or call ray.shutdown() first"
        )


def _resolved(address: str) -> tuple[str, str]:
    from ..parallel.placement import this_node

    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        host = socket.gethostbyname(host)
    return (this_node() if host.startswith("127.") else host), port


def _start() -> None:
    """A cluster of this machine alone, for this process alone."""
    import ray

    # Ray's own 15 starves the stages beside anything that works
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(
        address="local",
        num_cpus=_PRIVATE_CPUS,
        object_store_memory=_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _system_config={"prestart_worker_first_driver": False},  # it would begin one for each CPU
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
