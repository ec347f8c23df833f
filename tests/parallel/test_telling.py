"""What a chain of actors is told when its first stage is not there to hear it; without Ray."""

import threading

import pytest
from ray.exceptions import ActorDiedError

from longreel.parallel import telling
from longreel.parallel.link import LinkClosed
from longreel.parallel.tasks import WalkState
from longreel.parallel.telling import Telling

WAIT_S = 20.0


class First:
    """A first stage that answers when it may, with this block or this error."""

    def __init__(self, answer):
        self.answer, self.asked, self.may = answer, threading.Event(), threading.Event()

    def control(self, method, *args):
        return self


@pytest.fixture
def prompts():
    return {}


@pytest.fixture
def told(monkeypatch, prompts):
    def wait_all(calls, timeout_s, what, check):
        (first,) = calls
        first.asked.set()
        assert first.may.wait(WAIT_S)
        if isinstance(first.answer, Exception):
            raise first.answer
        return [first.answer]

    monkeypatch.setattr(telling, "wait_all", wait_all)
    return Telling(lambda block, text, oldest: prompts.update({block: text}), lambda: None)


def tell(told, text):
    """In a thread, which is returned, and what came of it."""
    came = []
    thread = threading.Thread(target=lambda: came.append(told.change_text(text)), daemon=True)
    thread.start()
    return thread, came


def test_between_two_epochs_it_is_kept_for_the_next_at_once(told, prompts):
    told.seen, told.walk = 3, WalkState(next_block=5)
    assert told.change_text("a dog") == 5
    told.came((5, 6))
    assert told.change_text("a bird") == 7
    assert (told.stop(), told.stop(), told.limit) == (7, 7, 7)
    assert prompts == {5: "a dog", 7: "a bird"}


def test_a_stop_before_there_is_a_first_stage_leaves_a_block(told):
    assert (told.stop(), told.limit) == (1, 1)


@pytest.mark.parametrize("error", [ActorDiedError(), TimeoutError(), LinkClosed()])
def test_a_first_stage_that_is_lost_keeps_nobody_waiting_and_what_it_began_does_not_count(
    told, prompts, error
):
    """The chain notices it later, as its reader may be waiting for this."""
    first = First(error)
    with told.joining():
        told.open(first)
    told.came((0, 1))
    first.may.set()
    assert told.change_text("a dog") == 2
    with pytest.raises(LinkClosed, match="did not answer"):
        told.came((2,))  # which began without it
    told.shut()
    with told.joining():
        assert prompts == {2: "a dog"}
        assert told.seen == 2
    told.came((2,))


def test_an_answer_of_an_epoch_that_ends_meanwhile_is_known_to_the_next(told, prompts):
    first, joined = First(4), threading.Event()
    with told.joining():
        told.open(first)
    thread, came = tell(told, "a dog")
    assert first.asked.wait(WAIT_S)
    told.shut()

    def join():
        with told.joining():
            assert prompts == {4: "a dog"}
            joined.set()

    joins = threading.Thread(target=join, daemon=True)
    joins.start()
    assert not joined.wait(0.1)
    first.may.set()
    for one in (thread, joins):
        one.join(WAIT_S)
    assert (came, joined.is_set(), told.seen) == ([4], True, 4)


def test_nothing_is_told_to_an_epoch_that_is_begun_with_less(told):
    first = First(4)
    first.may.set()
    with told.joining():
        thread, came = tell(told, "a dog")
        thread.join(0.1)
        assert not came
        told.open(first)
    thread.join(WAIT_S)
    assert came == [4]


def test_who_tells_what_is_over_hears_how_many_blocks_there_are(told, prompts):
    told.end(9)
    assert (told.change_text("a dog"), told.stop(), prompts) == (9, 9, {})
