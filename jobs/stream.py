"""Frames of a render as they become final, and what can be said to it meanwhile."""

import os
import threading
from collections.abc import Iterator

from ..pipeline.generator import Chunk, Generator


class FrameStream(Iterator[Chunk]):
    """An iterator over chunks. Closing it, or leaving its `with` block, ends the render.

    Rendering begins with the first chunk asked for; at most a block is made ahead of the reader.
    """

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._chunks = generator.chunks()
        self._reading = threading.RLock()
        self._is_closed = False
        self._process = 0  # that it was begun in

    def __next__(self) -> Chunk:
        self._process = self._process or os.getpid()
        if self._process != os.getpid():  # a fork of that one, where nobody makes any frames
            raise ValueError(
                "this stream was begun in another process, so no frame of it will come here; read "
                "it there and send the frames, or begin it in this process"
            )
        with self._reading:
            if self._is_closed:
                raise StopIteration
            return next(self._chunks)

    def set_prompt(self, prompt: str) -> None:
        """Another prompt for the blocks that are yet to begin. From any thread."""
        self._generator.set_prompt(prompt)

    def stop(self) -> None:
        """Begin no more blocks: those in flight still come, and the first, once a chunk was asked
        for. From any thread."""
        if self._process:
            self._generator.stop()
        else:
            self.close()

    def close(self) -> None:
        """End at once and free everything; frames that were not taken are lost. From any thread:
        one that waits for a chunk has that one at most."""
        self._is_closed = True
        self._generator.give_up()
        with self._reading:
            self._chunks.close()

    def __enter__(self) -> "FrameStream":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
