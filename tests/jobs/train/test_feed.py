"""What is made ahead is what would have been made when asked, in its order."""

import os

import pytest
import torch

from longreel.jobs.train.feed import made_ahead


def made(number):
    return torch.tensor([number, os.getpid()])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_everything_comes_once_and_in_order(workers):
    got = [tensor.tolist() for tensor in made_ahead(made, range(5, 30), workers)]
    assert [number for number, _ in got] == list(range(5, 30))
    assert len({pid for _, pid in got} - {os.getpid()}) == workers
    assert not list(made_ahead(made, range(0), workers))


def test_processes_end_with_the_one_who_stops_taking():
    items = made_ahead(made, range(1000), 2)
    pids = {next(items).tolist()[1] for _ in range(4)}
    items.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_what_goes_wrong_in_a_process_is_said():
    def wrong(number):
        raise ValueError(f"{number} is wrong")

    with pytest.raises(ValueError, match="3 is wrong"):
        next(made_ahead(wrong, [3], 1))
