"""The other end of a link: a process of its own, or a thread where the link is for one process.

`Peer.start(function, *args)` runs one of the functions below over there and returns a future.
"""

import os
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longreel.parallel import gloo_link, nccl_link
from longreel.parallel.link import NCCL_SETTINGS, LinkSpec, Message, open_receiver, open_sender
from longreel.parallel.wire import payload_bytes

APART = "/apart"  # ends the names of NCCL links that have gloo in its place
GPU_PAYLOADS = nccl_link.GpuPayloads
gpu = 0  # of this process

os.environ.update(NCCL_SETTINGS)

ends: dict[str, Any] = {}  # of this process, by the name of the link and the side
sent: dict[str, int] = {}


def make(case: str) -> list[Message]:
    """Messages both processes can make: same case, same bits."""
    g = torch.Generator().manual_seed(len(case))
    raw = torch.randint(0, 256, (720,), generator=g).to(torch.uint8)
    if case == "dtypes":  # random bits: among them infinities and many sorts of NaN
        real = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
        others = [torch.int64, torch.int32, torch.uint8, torch.complex64]
        return [Message(b"x", tuple(raw.view(dtype) for dtype in real + others))]
    if case == "shapes":
        shapes = [(), (1,), (0,), (3, 0, 5), (2, 3, 4, 5, 6), (1, 1, 1, 1, 1, 1, 720)]
        tensors = [raw[: torch.Size(s).numel()].reshape(s).to(torch.float32) for s in shapes]
        strided = raw.reshape(20, 36).t()[::3]
        conjugate = raw.view(torch.complex64).conj()
        return [Message(b"", (*tensors, strided, conjugate, raw.expand(3, 720)))]
    if case == "no tensors":
        return [Message(b"only words"), Message(b"")]
    if case == "large header":
        return [Message(bytes(raw.tolist()) * 700, (raw,))]
    if case == "64 MB":
        return [Message(b"large", (torch.arange(1 << 24, dtype=torch.int32), raw))]
    if case == "many small":
        return [Message(b"%d" % i, (torch.full((i % 7,), i), raw[i:])) for i in range(300)]
    if case == "growing":
        return [Message(b"%d" % i, (torch.full((1 << i,), i),)) for i in range(20)]
    if case == "4 MB":
        return [Message(b"%d" % i, (torch.full((1 << 20,), float(i)),)) for i in range(8)]
    raise ValueError(case)


def contents(message: Message) -> list[tuple[object, ...]]:
    """To the bit, where equality would find NaN unlike itself."""

    def bits(tensor: Tensor) -> bytes:
        return bytes(tensor.cpu().resolve_conj().reshape(-1).view(torch.uint8).numpy())

    return [(message.header,), *((t.dtype, t.shape, bits(t)) for t in message.tensors)]


def open_end(spec: LinkSpec, side: str) -> None:
    if spec.name.endswith(APART):
        nccl_link.GpuPayloads = GlooPayloads
    elif spec.kind == "nccl":
        nccl_link.GpuPayloads = GPU_PAYLOADS
        torch.cuda.set_device(gpu)  # of this thread
    ends[spec.name + side] = {"sender": open_sender, "receiver": open_receiver}[side](spec)


def send(name: str, case: str) -> None:
    for message in make(case):
        ends[name + "sender"].send(message)


def send_for_ever(name: str) -> str:
    """The error that ends it; `num_sent` tells meanwhile how far it came."""
    sender = ends[name + "sender"]
    try:
        while True:
            sender.send(Message(b"", (torch.zeros(1),)))
            sent[name] = num_sent(name) + 1
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"


def num_sent(name: str) -> int:
    return sent.get(name, 0)


def check(name: str, case: str) -> int:
    """Receives the messages of a case; how many, if all were right."""
    return check_first(name, case, len(make(case)))


def check_first(name: str, case: str, num_messages: int) -> int:
    messages = make(case)[:num_messages]
    for i, expected in enumerate(messages):
        got = ends[name + "receiver"].recv()
        assert contents(got) == contents(expected), f"{case}: message {i} differs"
    return len(messages)


def recv_error(name: str, timeout_s: float | None = None) -> str:
    try:
        ends[name + "receiver"].recv(timeout_s)
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return "a message"


def close(name: str, side: str) -> None:
    ends.pop(name + side).close()


def close_all() -> None:
    for end in ends.values():
        end.close()
    ends.clear()


def holdings() -> dict[str, int]:
    """What a process may not leave behind: files and sockets, memory by others' names, threads."""
    return {
        "files": len(os.listdir("/proc/self/fd")),
        "shared memory": sum(
            name.startswith(("longreel", "psm_", "torch_")) for name in os.listdir("/dev/shm")
        ),
        "threads": sum(t.name.startswith(("link", "meet")) for t in threading.enumerate()),
        "tasks": len(os.listdir("/proc/self/task")),
        "memfd": Path("/proc/self/maps").read_text().count("memfd:longreel"),
    }


class GlooPayloads:
    """NCCL's part on CPUs: a group of its own, whose transfers are waited for in threads.

    As NCCL's, they can be asked whether they are over, and abort ends them.
    """

    def __init__(self, spec: LinkSpec, rank: int) -> None:
        self._pair = gloo_link._Pair(replace(spec, name=f"{spec.name}/payloads"), rank)
        self._pair.start()

    def send(self, tensors: Any, places: Any) -> tuple[Any, Tensor]:
        payload = torch.empty(payload_bytes(places), dtype=torch.uint8)
        for at, tensor in zip(places, tensors, strict=True):
            at.view(payload).copy_(tensor)
        return Transfer(partial(self._pair.post_send, payload, 0)), payload

    def ask(self, places: Any) -> Any:
        payload = torch.empty(payload_bytes(places), dtype=torch.uint8)
        work = Transfer(partial(self._pair.post_recv, payload, 0)) if len(payload) else None
        return nccl_link.Coming(payload, places, work)

    def take(self, coming: Any) -> Any:
        return coming.tensors()

    def abort(self) -> None:
        self._pair.close()


class Transfer:
    def __init__(self, post: Callable[[], Any]) -> None:
        work = post()  # here, so that transfers keep their order
        self._done: Future[None] = Future()
        threading.Thread(target=self._run, args=(work,), name="link work", daemon=True).start()

    def _run(self, work: Any) -> None:
        try:
            work.wait(timedelta(days=1))
            self._done.set_result(None)
        except RuntimeError as error:
            self._done.set_exception(error.with_traceback(None))  # whose frames hold the group

    def is_completed(self) -> bool:
        return self._done.done()

    def wait(self) -> None:
        self._done.result(0)


class Peer:
    """Runs functions of this file in threads: here, or in another process if it has a context."""

    def __init__(self, context: BaseContext | None = None) -> None:
        self._process: Any = None
        self._pool = _whole_pool()
        self._answers: dict[int, Future[Any]] = {}
        if context is not None:
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,))
            self._process.start()
            theirs.close()
            self._pool.submit(self._read)

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self, function: Callable[..., Any], *args: object) -> Future[Any]:
        if self._process is None:
            return self._pool.submit(function, *args)
        number = len(self._answers)
        self._answers[number] = Future()
        self._pipe.send((number, function.__name__, args))
        return self._answers[number]

    def call(self, function: Callable[..., Any], *args: object) -> Any:
        return self.start(function, *args).result(30)

    def _read(self) -> None:
        while True:
            try:
                number, result, error = self._pipe.recv()
            except (EOFError, OSError):
                return
            if error:
                self._answers[number].set_exception(AssertionError(error))
            else:
                self._answers[number].set_result(result)

    def leave(self) -> int:
        """Asks the process to end by itself; its exit status."""
        self._pipe.send(None)
        self._process.join(20)
        return self._process.exitcode

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._pool.shutdown()  # whose reader has met the end
        if self._process is not None:
            self._pipe.close()


def _whole_pool() -> ThreadPoolExecutor:
    """All of its threads are there: one that came later, as the others were about to be free, would
    count as left behind by what a test does meanwhile."""
    pool = ThreadPoolExecutor(6)
    met = threading.Barrier(6)
    for waiting in [pool.submit(met.wait) for _ in range(6)]:
        waiting.result()
    return pool


def _serve(pipe: Connection) -> None:
    global gpu
    gpu = 1
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    lock = threading.Lock()

    def run(number: int, name: str, args: tuple[Any, ...]) -> None:
        result, error = None, None
        try:
            result = globals()[name](*args)
        except BaseException as e:
            error = f"{type(e).__name__}: {e}"
        with lock:
            pipe.send((number, result, error))

    with _whole_pool() as pool:
        while order := pipe.recv():
            pool.submit(run, *order)
