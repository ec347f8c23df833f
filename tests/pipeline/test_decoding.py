"""A worker that decodes may be lost between any two items: every frame comes once, and right."""

import threading

import pytest
import torch

from longreel.models.vae_state import DecoderState
from longreel.pipeline.decoding import SteadyDecoder

BLOCKS, LATENTS = 5, 2


class LostError(Exception):
    pass


class SumWorker:
    """Frames are the sum of all latents so far; it is lost when it has said `left` more."""

    def __init__(self, left):
        self.sum, self.left = torch.zeros(1), left

    def call(self, method, tensors, num_frames):
        assert method == "restore_packed"
        self._say()
        self.sum = tensors["taps.0"].tensor().clone()

    def stream(self, method, latents, keep):
        for latent in latents:
            self.sum = self.sum + latent
            self._say()
            yield self.sum.clone().numpy()
        if keep:
            self._say()
            yield {"taps.0": self.sum.clone()}
        self._say()  # the end of it

    def _say(self):
        if self.left == 0:
            raise LostError
        self.left -= 1


class SumState:
    """What stands for a VAE's: the sum."""

    def __init__(self, tensors):
        self.tensors = tensors

    def to_tensors(self):
        return self.tensors


@pytest.fixture(autouse=True)
def _states(monkeypatch):
    monkeypatch.setattr(DecoderState, "from_tensors", SumState)


@pytest.mark.parametrize("again", [3, 1000])  # another one is lost as well, or none
@pytest.mark.parametrize("lost_after", range(BLOCKS * (LATENTS + 2)))
def test_whenever_a_worker_is_lost_the_frames_are_those_of_one(lost_after, again):
    workers = [SumWorker(lost_after)]

    def revive(error):
        workers.append(SumWorker(again if len(workers) == 1 else 1000))

    decoder = SteadyDecoder(lambda: workers[-1], revive, LostError)
    frames = []
    for block in range(BLOCKS):
        latents = torch.arange(LATENTS).float() + LATENTS * block + 1
        items = decoder.decode(latents, keep=block % 2 == 1)
        frames += [float(item[0]) for item in items if not isinstance(item, SumState)]
    values = range(1, BLOCKS * LATENTS + 1)
    assert frames == [sum(values[: n + 1]) for n in range(len(values))]
    assert len(workers) > 1 or lost_after >= BLOCKS * (LATENTS + 1) + 2


class EagerWorker(SumWorker):
    """Begins with the call, as an actor does; what has come of it is lost with it."""

    def stream(self, method, latents, keep):
        return self._told([*super().stream(method, latents, keep)])

    def _told(self, items):
        for item in items:
            self._say()
            yield item


def test_a_block_is_not_begun_before_one_that_is_about_to_be_begun_anew():
    """One thread begins a block just as the other reads the first that nobody has begun."""
    workers = [EagerWorker(1000)]

    def revive(error):
        workers.append(EagerWorker(1000))

    blocks = [torch.arange(LATENTS).float() + LATENTS * i + 1 for i in range(BLOCKS)]
    late, is_time = [], []

    def worker():
        if is_time:
            is_time.clear()
            thread = threading.Thread(target=lambda: late.append(begin(4)), daemon=True)
            thread.start()
            thread.join(0.5)  # longer than it takes, unless it has to wait
        return workers[-1]

    decoder = SteadyDecoder(worker, revive, LostError)

    def begin(i):
        return decoder.decode(blocks[i], keep=False)

    frames = [*begin(0)]
    one, two = begin(1), begin(2)
    workers[0].left = 0
    frames += one  # by another worker
    three = begin(3)  # behind one that the lost worker had begun: not ahead of its turn
    frames += two
    is_time.append(True)
    frames += three
    while not late:
        threading.Event().wait(0.01)
    frames += late[0]
    values = range(1, BLOCKS * LATENTS + 1)
    assert [float(frame[0]) for frame in frames] == [
        sum(values[: n + 1]) for n in range(len(values))
    ]
