"""A stage of several devices: a thread for each, joined by gloo over this machine's sockets."""

import itertools
import threading
from contextlib import closing

from longreel.parallel.group import Group, GroupSpec
from longreel.parallel.link import Rendezvous
from longreel.parallel.mesh import Mesh
from longreel.parallel.sequence import Share

_numbers = itertools.count()


def make_share(mesh, number, meeting, name, timeout_s=20.0):
    def group(dim):
        line = mesh.line(number, dim)
        spec = GroupSpec(
            kind="gloo",
            name=f"{name}/{dim}/{line[0]}",
            rank=line.index(number),
            num=len(line),
            host=meeting.host,
            port=meeting.port,
            timeout_s=timeout_s,
        )
        return Group(spec) if len(line) > 1 else None

    return Share(group("ring"), group("ulysses"))


def on_every_rank(ring, ulysses, work, timeout_s=90.0):
    """`work(share)` in a thread each; what they return, in order. The first error is raised."""
    mesh, name = Mesh(ring=ring, ulysses=ulysses), f"shares{next(_numbers)}"
    results, errors = [None] * mesh.size, []

    def run(number):
        try:
            with closing(make_share(mesh, number, meeting, name, timeout_s)) as share:
                results[number] = work(share)
                finished.wait(timeout_s)  # closing ends the others, who may be a little behind
        except BaseException as error:
            errors.append(error)
            finished.abort()

    finished = threading.Barrier(mesh.size)
    with Rendezvous("127.0.0.1") as meeting:
        threads = [threading.Thread(target=run, args=(i,)) for i in range(mesh.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * timeout_s)
            assert not thread.is_alive()
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return results
