"""Imports of libraries that make hundreds of thousands of objects, of which none is garbage."""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_ONE = threading.RLock()


@contextmanager
def importing() -> Iterator[None]:
    """Nobody looks for garbage meanwhile: a fifth of the seconds that transformers and diffusers
    take in every process that reads prompts or decodes.

    One thread at a time: transformers puts another module in its own place at the end of its
    import, and a thread that waited for that import finds no names in the one it was handed.
    """
    with _ONE:
        was_on = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if was_on:
                gc.enable()
