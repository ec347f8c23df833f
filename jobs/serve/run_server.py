"""A server as a process: checked, started, told where it is, ended in order."""

import contextlib
import resource
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn

from ...configs.load import load_config
from ..home.place import default_home
from .app import make_app
from .connection import bounded
from .logs import say, write_logs
from .tokens import Tokens, check_host, read_tokens

_CONNECTIONS = 2000  # at once; more are refused


def run_server(
    *,
    host: str,
    port: int,
    home: Path | None,
    token_file: Path | None,
    preset: str | None,
    workers: int,
    overrides: Sequence[str],
) -> None:
    """Until SIGINT or SIGTERM. ValueError says what cannot be served."""
    tokens = Tokens({}) if token_file is None else read_tokens(token_file)
    check_host(host, tokens)
    load_config(preset, overrides)
    app = make_app(
        home or default_home() / "server",
        tokens=tokens,
        workers=workers,
        preset=preset,
        overrides=overrides,
    )
    write_logs()
    _allow_files()
    listening = _listen(host, port)
    where = url_of(host, listening.getsockname()[1])
    print(f"longreel serves at {where}", file=sys.stdout, flush=True)
    say("serving", url=where, clients="by token" if tokens else "local")
    # uvicorn raises the signal again, once all is done
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(_config(app)).run(sockets=[listening])


def url_of(host: str, port: int) -> str:
    name = host.strip("[]")
    if ":" in name:
        name = f"[{name}]"
    return f"http://{'localhost' if name == '127.0.0.1' else name}:{port}"


def _allow_files() -> None:
    """As many open files as we may have: a connection is one, and so is all that renders need."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):  # a system that has a lower bound of its own
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=bounded(app.state.context.limits),
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=1,  # a stream has no end of its own; its reader comes back
        ws="websockets-sansio",
        ws_max_size=app.state.context.limits.socket_bytes,
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host.strip("[]"), port))
    except OSError as error:
        listening.close()
        raise ValueError(
            f"host={host}, port={port} cannot be listened on ({error.strerror}); end what is "
            "there, or give --port another number (0: any that is free)"
        ) from error
    return listening
