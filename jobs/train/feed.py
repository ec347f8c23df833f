"""Things made ahead by processes of their own, taken in order: a GPU does not wait for them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

_AHEAD = 4  # things of each process that may wait to be taken
_TIMEOUT_S = 300.0  # for one of them


def made_ahead(make: Callable[[int], T], numbers: Sequence[int], workers: int) -> Iterator[T]:
    """`make` of each number, in their order, by `workers` processes; 0: by this one, when asked.

    What is made must follow from its number alone. Processes are forks, so `make` may be anything,
    as long as it keeps off the GPU.
    """
    if not workers or not numbers:
        yield from map(make, numbers)
        return
    from torch.utils.data import DataLoader

    loader: DataLoader[T] = DataLoader(
        _Made(make),  # type: ignore[arg-type]
        sampler=numbers,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=_AHEAD,
        timeout=_TIMEOUT_S,
        multiprocessing_context="fork",
    )
    yield from loader


class _Made(Generic[T]):
    """What a DataLoader takes for data."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make

    def __getitem__(self, number: int) -> T:
        return self._make(number)
