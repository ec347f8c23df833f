"""The name a user most likely meant."""

from collections.abc import Iterable
from difflib import SequenceMatcher

_MIN_LIKENESS = 0.5  # bf16 and bfloat16 are 0.67 alike, fp16 and float16 0.55


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The most similar name, the first of equals; None when all of them are far away."""
    likeness = {
        name: SequenceMatcher(None, word.lower(), name.lower(), autojunk=False).ratio()
        for name in names
    }
    best = max(likeness, key=likeness.__getitem__, default=None)
    return best if best is not None and likeness[best] >= _MIN_LIKENESS else None


def nearest_key(key: str, keys: Iterable[str]) -> str | None:
    """As `nearest`, for dotted keys: a right last part under a wrong group wins, and a key without
    a group is held against last parts."""
    keys = list(keys)
    leaves = {known: known.rpartition(".")[2] for known in keys}
    leaf = key.rpartition(".")[2]
    if leaf == key:
        leaf = nearest(key, leaves.values()) or leaf
    same_leaf = [known for known in keys if leaves[known] == leaf]
    return nearest(key, same_leaf or keys) or (same_leaf[0] if same_leaf else None)


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """A clause for the middle of a message, empty when no name is near."""
    name = nearest(word, names)
    return f"did you mean {name}? " if name else ""
