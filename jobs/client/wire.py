"""How bytes of the server become events and frames: nothing of sockets here."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_HEAD = struct.Struct(">IQ")  # length of what follows, and the frame's number

Frames = npt.NDArray[np.uint8]  # n x height x width x 3


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that has happened to a render; progress has no number."""

    name: str
    data: dict[str, Any]
    number: int | None


class EventReader:
    """Server-sent events, fed piece by piece."""

    def __init__(self, last: int = 0) -> None:
        self._text = ""
        self.last = last  # number of the last event that has one

    def feed(self, text: str) -> Iterator[Event]:
        self._text += text
        while "\n\n" in self._text:
            block, _, self._text = self._text.partition("\n\n")
            fields = dict(
                line.split(": ", 1) for line in block.split("\n") if not line.startswith(":")
            )
            if "event" in fields:
                number = int(fields["id"]) if "id" in fields else None
                self.last = number if number is not None else self.last
                yield Event(name=fields["event"], data=json.loads(fields["data"]), number=number)


class FrameReader:
    """Raw frames, fed piece by piece: what is not whole at a break is asked for again."""

    def __init__(self, height: int, width: int, start: int) -> None:
        self._shape = (height, width, 3)
        self._data = bytearray()
        self.next = start  # number of the frame that is still to come

    def feed(self, data: bytes) -> Frames | None:
        """All frames that are whole by now, in order."""
        self._data += data
        size, frames = _HEAD.size + int(np.prod(self._shape)), []
        while len(self._data) >= size:
            length, number = _HEAD.unpack_from(self._data)
            if length != size - 4 or number != self.next:
                raise ValueError(
                    f"frame {number} of {length} bytes came, where frame {self.next} of {size - 4} "
                    "was due; client and server are of different versions"
                )
            pixels = bytes(self._data[_HEAD.size : size])
            frames.append(np.frombuffer(pixels, dtype=np.uint8).reshape(self._shape))
            del self._data[:size]
            self.next += 1
        return np.stack(frames) if frames else None

    def forget(self) -> None:
        """What was half there when the connection broke."""
        self._data.clear()
