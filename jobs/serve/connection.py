"""What a connection may do before it has asked for anything, which takes no token."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .limits import Limits


def bounded(limits: Limits) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, which by itself waits for a request's head for ever, of any length."""

    class Bounded(HttpToolsProtocol):
        _chunk = 0  # bytes of what is being read

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect_head()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            if not self._in_head:
                self._expect_head()

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._late.cancel()
            super().on_headers_complete()

        def data_received(self, data: bytes) -> None:
            self._chunk = len(data)
            super().data_received(data)
            if self._in_head:
                self._head_bytes += len(data)
                if self._head_bytes > limits.head_bytes:
                    self.send_400_response(f"a request's head may have {limits.head_bytes} bytes")

        def connection_lost(self, exc: Exception | None) -> None:
            self._late.cancel()
            super().connection_lost(exc)

        def _expect_head(self) -> None:
            self._in_head = True
            self._head_bytes = -self._chunk  # which holds the end of the request before
            self._late = self.loop.call_later(limits.head_s, self.transport.close)

    return Bounded
