"""Who may use the server: bearer tokens out of a file, and the page's cookie made of one."""

import hashlib
import hmac
import ipaddress
from pathlib import Path

from ...configs.files import expand

COOKIE = "longreel_session"
LOCAL = "local"  # the one client of a server without tokens
_MIN_CHARS = 16


class Tokens:
    """Of a token nothing but digests is kept."""

    def __init__(self, tokens: dict[str, str]) -> None:
        """By the client's name."""
        self._bearer = {name: _digest(token) for name, token in tokens.items()}
        self._cookie = {name: _digest(cookie_of(token)) for name, token in tokens.items()}

    def __bool__(self) -> bool:
        return bool(self._bearer)

    def client_of(self, token: str) -> str | None:
        return _find(token, self._bearer)

    def client_of_cookie(self, cookie: str) -> str | None:
        return _find(cookie, self._cookie)


def read_tokens(path: Path) -> Tokens:
    """A token a line, after its client's name and a colon where there are several clients."""
    try:
        lines = expand(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"token-file={path} cannot be read ({error}), so nobody could be let in; give a text "
            "file with a token in it"
        ) from error
    tokens: dict[str, str] = {}
    for line in lines:
        name, colon, token = line.partition(":")
        name, token = (name.strip(), token.strip()) if colon else ("default", line.strip())
        if not line.strip() or line.startswith("#"):
            continue
        if len(token) < _MIN_CHARS or not (token.isascii() and token.isprintable()):
            raise ValueError(
                f"token-file={path} gives {name!r} a token of {len(token)} characters, which can "
                f"be guessed or not be sent; use {_MIN_CHARS} or more of plain ASCII, such as "
                "`openssl rand -hex 32` makes"
            )
        if name in tokens or not name:
            raise ValueError(
                f"token-file={path} names the client {name!r} twice or not at all, so its renders "
                "would belong to nobody; write lines such as `anna: TOKEN`"
            )
        tokens[name] = token
    if not tokens:
        raise ValueError(
            f"token-file={path} holds no token, so nobody could be let in; write one into it, such "
            "as `openssl rand -hex 32` makes"
        )
    return Tokens(tokens)


def cookie_of(token: str) -> str:
    """What the page's browser keeps: it opens this server, and does not tell the token."""
    return hmac.new(token.encode(), b"longreel page", hashlib.sha256).hexdigest()


def check_host(host: str, tokens: Tokens) -> None:
    """ValueError if the server would stand open to the network without a token."""
    if tokens or is_loopback(host):
        return
    raise ValueError(
        f"host={host} can be reached from the network, and without a token anybody there could use "
        "this machine; give --token-file FILE, or leave the host at 127.0.0.1"
    )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="replace")).digest()


def _find(text: str, digests: dict[str, bytes]) -> str | None:
    """Takes the same time whether, and at which place, it is found."""
    asked, found = _digest(text), None
    for name, digest in digests.items():
        if hmac.compare_digest(asked, digest):
            found = name
    return found
