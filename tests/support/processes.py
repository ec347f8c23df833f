"""Processes of this machine, as tests look for those that should be gone."""

import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

_GONE = (FileNotFoundError, ProcessLookupError)


def ended_with_us(command: list[str]) -> list[str]:
    """The command, asked to end if the process that starts it dies, however that may be."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", *command] if setpriv else command


def state(pid: int) -> str:
    """A letter, as in ps; Z also when it is gone."""
    return _stat(pid)[0]


def alive(pid: int) -> bool:
    return state(pid) not in "ZX"


def all_gone(pids, within_s: float) -> bool:
    return wait_until(lambda: not any(map(alive, pids)), within_s)


def still_there(pids, within_s: float) -> set[int]:
    """Zombies too: nobody has waited for these."""

    def there() -> set[int]:
        return {pid for pid in pids if Path(f"/proc/{pid}").exists()}

    wait_until(lambda: not there(), within_s)
    return there()


def wait_until(condition, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def children_of(pids) -> set[int]:
    """Living ones."""
    return {pid for pid in _all() if int(_stat(pid)[1]) in pids and alive(pid)}


def descendants(pid: int) -> set[int]:
    found = {pid}
    while more := children_of(found) - found:
        found |= more
    return found - {pid}


def session(leader: int) -> set[int]:
    """Living processes of the session that it leads, or led."""
    return {pid for pid in _all() if int(_stat(pid)[3]) == leader and alive(pid)}


def command(pid: int) -> str:
    with suppress(*_GONE):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


def kept_shared_memory(before: set[str], within_s: float = 10.0) -> set[str]:
    """What has come since and stays, and is not mapped by processes of tests beside this one."""

    def came() -> set[str]:
        new = shared_memory() - before
        return new - _mapped_by_others() if new else new

    wait_until(lambda: not came(), within_s)
    return came()


def _mapped_by_others() -> set[str]:
    """Names of shared memory that living processes hold which are not of this one's making."""
    ours = descendants(os.getpid()) | {os.getpid()}
    names: set[str] = set()
    for pid in _all():
        if pid in ours:
            continue
        with suppress(*_GONE, PermissionError):
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
            names.update(line.rpartition("/dev/shm/")[2] for line in lines if "/dev/shm/" in line)
    return names


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _all() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _stat(pid: int) -> list[str]:
    """State, parent, group, session."""
    with suppress(*_GONE):
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[:4]
    return ["Z", "0", "0", "0"]
