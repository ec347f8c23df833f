"""Each kind of link beside a plain copy of the same memory, in turn, one thread each.

    python benchmarks/link.py                # 1, 16 and 64 MB
    python benchmarks/link.py --megabytes 4 256 --runs 50
    python benchmarks/link.py --nccl         # with two CUDA devices: between them, too

One way: from before `send` here to after `recv` in the other process (thread, for local), on the
clock that the processes of a Linux machine share. The copy goes to memory already in use; a link
between processes copies at least into shared memory and out of it, to memory that is new.
"""

import argparse
import os
import pickle
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import count

import torch

from longreel.parallel.link import (
    NCCL_SETTINGS,
    LinkClosed,
    LinkSpec,
    Message,
    Receiver,
    Rendezvous,
    Sender,
    open_receiver,
    open_sender,
)

KINDS = ["local", "shm", "gloo"]


def answer(there: LinkSpec, back: LinkSpec) -> None:
    """The other end: for every message the time it came, until the link closes."""
    if there.kind == "nccl":
        torch.cuda.set_device(1)
    receiver, sender = open_receiver(there), open_sender(back)
    try:
        while True:
            message = receiver.recv()
            sender.send(Message(repr(time.perf_counter()).encode()))
            del message  # its memory goes after the clock, as it would in a stage
    except LinkClosed:
        receiver.close()
        sender.close()


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def one_way(sender: Sender, receiver: Receiver, message: Message) -> float:
    start = time.perf_counter()
    sender.send(message)
    return float(receiver.recv().header) - start


def compare(ends: dict[str, tuple[Sender, Receiver]], num_bytes: int, runs: int) -> None:
    tensor = torch.ones(num_bytes // 4)
    target = torch.zeros_like(tensor)
    times: dict[str, list[float]] = {name: [] for name in ["copy", *ends]}
    for run in range(runs + 3):
        now = {"copy": timed(lambda: target.copy_(tensor))}
        for kind, (sender, receiver) in ends.items():
            sent = tensor.cuda() if kind == "nccl" else tensor
            now[kind] = one_way(sender, receiver, Message(b"", (sent,)))
        for name, seconds in now.items():
            if run >= 3:  # the first ones make the ring
                times[name].append(seconds)
    copy = statistics.median(times["copy"])
    for name, seconds in times.items():
        median, worst = statistics.median(seconds), sorted(seconds)[int(0.9 * len(seconds))]
        print(
            f"{num_bytes / 2**20:8.3f} MB  {name:5s}  {median * 1e3:8.3f} ms"
            f"  (p90 {worst * 1e3:8.3f})  {num_bytes / median / 1e9:8.2f} GB/s"
            f"  {median / copy:6.2f} x copy"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, nargs="+", default=[1, 16, 64])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--nccl", action="store_true", help="between two GPUs, too")
    parser.add_argument("--other-end", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.update(NCCL_SETTINGS)
    if options.other_end:
        return answer(*pickle.load(sys.stdin.buffer))

    print(f"{platform.machine()}, torch {torch.__version__}, {options.runs} runs, medians")
    numbers = count()
    ends: dict[str, tuple[Sender, Receiver]] = {}
    processes, threads = [], []
    with Rendezvous("127.0.0.1") as rendezvous:

        def spec(kind: str) -> LinkSpec:
            return LinkSpec(
                kind=kind,
                name=f"benchmark/{next(numbers)}",
                host=rendezvous.host,
                port=rendezvous.port,
                timeout_s=60,
            )

        for kind in [*KINDS, *(["nccl"] if options.nccl else [])]:
            there, back = spec(kind), spec(kind)
            if kind == "local":
                threads.append(threading.Thread(target=answer, args=(there, back)))
                threads[-1].start()
            else:
                command = [sys.executable, __file__, "--other-end"]
                process = subprocess.Popen(command, stdin=subprocess.PIPE)
                assert process.stdin is not None
                pickle.dump((there, back), process.stdin)
                process.stdin.close()
                processes.append(process)
            ends[kind] = open_sender(there), open_receiver(back)
        for megabytes in options.megabytes:
            compare(ends, int(megabytes * 2**20), options.runs)
        for sender, receiver in ends.values():
            sender.close()
            receiver.close()
        for process in processes:
            process.wait(60)
        for thread in threads:
            thread.join(60)


if __name__ == "__main__":
    main()
