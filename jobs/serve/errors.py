"""What goes wrong with a request, as the server says it: one envelope for both APIs."""

import errno
import re
import sqlite3
from collections.abc import Mapping

_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT)


class ApiError(Exception):
    """An answer other than the one that was hoped for."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.field = status, code, message, field
        self.headers = dict(headers or {})


def envelope(error: ApiError) -> dict[str, dict[str, str | None]]:
    """The shape that clients of `/v1/videos` read."""
    return {
        "error": {
            "message": _sendable(error.message),
            "type": _type(error.status),
            "param": None if error.field is None else _sendable(error.field),
            "code": error.code,
        }
    }


def is_short(error: BaseException) -> bool:
    """Whether there was no room for a moment: a full disk, too many open files."""
    return isinstance(error, sqlite3.Error) or getattr(error, "errno", None) in _SHORT


def _sendable(text: str) -> str:
    """JSON may name half a character, as a field of its own even, and UTF-8 has none."""
    return text.encode(errors="replace").decode()


def _type(status: int) -> str:
    if status >= 500:
        return "server_error"
    return {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
        status, "invalid_request_error"
    )


def without_paths(message: str) -> str:
    """What the server's folders are called is nothing to a client."""
    return re.sub(r"(?<![\w.:/])(?:file:)?~?/[^\s,;:()'\"]+", "(a file of the server)", message)
