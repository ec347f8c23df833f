"""Things that take long to make, kept in files of some of them each."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from ..home.durable import written_aside

Tensors = dict[str, Tensor]


def kept_in_shards(
    folder: Path,
    name: str,
    seeds: Sequence[int],
    at_once: int,
    make: Callable[[Sequence[int]], Tensors],
) -> Iterator[Tensors]:
    """What `make` gives for so many seeds after the other; only files that are missing are made.

    `name` is that of a file, with fields `begin` and `count`.
    """
    for begin in range(0, len(seeds), at_once):
        some = seeds[begin : begin + at_once]
        shard = folder / name.format(begin=begin, count=len(some))
        if not shard.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with written_aside(shard) as part:
                save_file(make(some), part)
        yield load_file(shard)
