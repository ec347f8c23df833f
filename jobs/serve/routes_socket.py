"""/api/v1/renders/{id}/stream: segments out, prompt changes and receipts in, over one WebSocket."""

import asyncio
import contextlib
import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from ..home.segments import Replaced
from .context import Context, context_of_socket
from .errors import ApiError, without_paths
from .record import Record
from .schemas import ChangePrompt
from .streams import Reader, segments_from

router = APIRouter()

_SEND_S = 60.0  # for a reader to take a segment; it may come back for it


@router.websocket("/api/v1/renders/{id}/stream")
async def stream(
    socket: WebSocket,
    id: str,
    start: Annotated[int, Query(alias="from", ge=0)] = 0,
    cut: Annotated[int | None, Query(ge=0)] = None,
) -> None:
    """Out: `init` and `segment`, each followed by its bytes, and `end`. In: `prompt`, `taken`.

    `cut`: as `init` named it; 4409 where that one is gone.
    """
    here = context_of_socket(socket)
    try:
        here.record(id, socket.state.client)
        await here.at_hand([id])
        record = here.record(id, socket.state.client)
        here.files.of(record.render)
    except ApiError as error:
        return await refuse_socket(socket, error.status, error.code)
    await socket.accept()
    reader, turn = Reader(), asyncio.Lock()
    reading = asyncio.create_task(_hear(socket, here, record, reader, turn))
    sending = asyncio.create_task(_send(socket, here, record, reader, turn, start, cut))
    done, others = await asyncio.wait({reading, sending}, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError, OSError):
        try:
            for task in done:
                task.result()
        except (ApiError, Replaced) as error:  # an edit has taken its files away
            await socket.send_json({"type": "error", "message": without_paths(str(error))})
            await socket.close(4409)
        else:
            await socket.close()


async def refuse_socket(socket: WebSocket, status: int, code: str) -> None:
    """After a handshake: without one whoever asks is told of nothing but a 403."""
    await socket.accept()
    await socket.close(4000 + status, code)


async def _send(
    socket: WebSocket,
    here: Context,
    record: Record,
    reader: Reader,
    turn: asyncio.Lock,
    start: int,
    cut: int | None,
) -> None:
    """`turn`: no answer comes between a message and the bytes that it announces."""
    request = record.request
    begun, cut = False, here.files.of(record.render).cut(cut).number
    async for files, segment in segments_from(here, record, start, reader, cut):
        async with asyncio.timeout(_SEND_S), turn:
            if not begun:
                init = await asyncio.to_thread(files.init)
                measures = {name: request[name] for name in ("width", "height", "fps", "frames")}
                facts = {"type": "init", "bytes": len(init), "cut": cut}
                await socket.send_json(facts | measures)
                await socket.send_bytes(init)
                begun = True
            data = await asyncio.to_thread(segment.read)
            here.metrics.sent("stream", len(data))
            facts = {"number": segment.number, "first": segment.first, "frames": segment.frames}
            await socket.send_json({"type": "segment", "bytes": len(data), **facts})
            await socket.send_bytes(data)
    current = here.queue.get(record.render)
    state = "cancelled" if current is None else current.state
    await socket.send_json({"type": "end", "status": state, "error": current and current.error})


async def _hear(
    socket: WebSocket, here: Context, record: Record, reader: Reader, turn: asyncio.Lock
) -> None:
    """A reader that has gone is noticed here: to send alone would not tell."""
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        answer = await _obey(message.get("text"), here, record, reader)
        if answer is not None:
            async with turn:
                await socket.send_json(answer)


async def _obey(
    text: str | None, here: Context, record: Record, reader: Reader
) -> dict[str, Any] | None:
    try:
        said = json.loads(text or "")
        match said["type"]:
            case "taken":
                reader.taken = max(reader.taken, int(said["frames"]))
                here.keeper.take(record.render, reader.taken)
                return None
            case "prompt":
                return await _change(said, here, record)
            case other:
                return {"type": "error", "message": f"type={other!r} is none of prompt, taken"}
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return {"type": "error", "message": "that is no message: send JSON with a known `type`"}


async def _change(said: dict[str, Any], here: Context, record: Record) -> dict[str, Any]:
    """Numbered by the sender, so that one who comes back may send again what got no answer."""
    number = int(said["number"])
    try:
        prompt = ChangePrompt(prompt=said["prompt"]).prompt
        repeated = await here.keeper.change_prompt(record.render, prompt, number)
    except ValidationError:
        return {"type": "error", "number": number, "message": "the prompt is empty or too long"}
    except ApiError as error:
        return {"type": "error", "number": number, "message": error.message}
    return {"type": "prompt", "number": number} | ({"repeated": True} if repeated else {})
