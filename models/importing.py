"""Imports of libraries that make hundreds of thousands of objects, of which none is garbage."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Nobody looks for garbage meanwhile: a fifth of the seconds that transformers and diffusers
    take in every process that reads prompts or decodes."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
