"""What a chain of actors is told while it works: its first stage hears it, or the next epoch does.

Between two epochs nobody has to be waited for: what the coordinator keeps is what the next first
stage begins with. Nor does a first stage that is lost keep anybody waiting, as the chain's own
thread may be waiting for its reader, and he for what was told.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from .crew import GONE, Check, Member, wait_all
from .link import LinkClosed
from .tasks import WalkState

_CONTROL_S = 10.0  # for an answer to a control call


class Telling:
    """Any thread tells; the chain's says where it is."""

    def __init__(self, remember: Callable[[int, object, int], None], check: Check) -> None:
        """`remember`: see ChainParts."""
        self._remember = remember
        self._check = check
        self._turn = threading.Lock()  # who tells, or joins: nothing is told in between
        self._lock = threading.Lock()
        self._first: Member | None = None  # who hears
        self._is_deaf = False  # it did not answer: nothing more of this epoch counts
        self._over: int | None = None  # blocks that there will have been
        self.limit: int | None = None  # blocks that may begin at all
        self.seen = 0  # blocks before this one have begun
        self.walk = WalkState()  # that the next epoch begins with

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Around all that the next epoch is given of `limit`, of `seen` and of prompts."""
        with self._turn:
            self._is_deaf = False
            yield

    def open(self, first: Member) -> None:
        """It has all that; from now on it is told."""
        with self._lock:
            self._first = first

    def shut(self) -> None:
        """This epoch is over."""
        with self._lock:
            self._first = None

    def end(self, blocks: int) -> None:
        """There will be no other, and so many blocks."""
        with self._lock:
            self._first, self._over = None, blocks

    def came(self, admits: Sequence[int]) -> None:
        """These blocks have begun, and what was made of them counts; LinkClosed: it does not."""
        with self._lock:
            if self._is_deaf:
                raise LinkClosed("the first stage did not answer")
            self.seen = max(self.seen, *(block + 1 for block in admits), 0)

    def stop(self) -> int:
        """See Chain."""

        def keep(block: int) -> int:
            self.limit = max(block, 1) if self.limit is None else self.limit
            return self.limit

        return self._tell(keep, "stop")

    def change_text(self, text: object) -> int:
        """See Chain."""

        def keep(block: int) -> int:
            self._remember(block, text, self.walk.oldest_prompt)
            self.seen = max(self.seen, block)  # those before it have begun
            return block

        return self._tell(keep, "change_text", text)

    def _tell(self, keep: Callable[[int], int], method: str, *args: object) -> int:
        with self._turn:
            first, block = self._first, None
            if first is not None:
                try:
                    call = first.control(method, *args)
                    block = int(wait_all([call], _CONTROL_S, method, self._check)[0])
                except (LinkClosed, TimeoutError, *GONE):
                    pass  # whether it has heard or not, what it makes of it does not count
            with self._lock:
                if self._over is not None:
                    return self._over
                if block is None:
                    self._is_deaf = self._is_deaf or first is not None
                    block = max(self.seen, self.walk.next_block)
                return keep(block)
