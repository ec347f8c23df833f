"""Whoever reaches the port, with a token or without, holds up nobody else."""

import contextlib
import socket
import time

import httpx
import pytest
import websockets.sync.client as websocket
from app import made, on_a_port, open_app

from longreel.jobs.serve.limits import Limits

GET = b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n"


@pytest.fixture
def at(tmp_path):
    """A server that waits for a head for a moment: where it is, and a render of it."""
    limits = Limits(head_s=0.5, head_bytes=10_000)
    with open_app(tmp_path, limits=limits) as app:
        render = made(app, frames=9)
        with on_a_port(app) as url:
            yield url, render


def connected(url, *sent):
    opened = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30)
    for data in sent:
        opened.sendall(data)
    return opened


def test_connections_that_ask_for_nothing_are_closed(at):
    """Two thousand of them, and nobody else was answered any more."""
    url, _ = at
    begun = time.monotonic()
    answered = connected(url, GET, b"\r\n")
    assert answered.recv(1000).startswith(b"HTTP/1.1 200")
    answered.sendall(GET)  # and no end of it, either
    silent = [connected(url), connected(url, GET), connected(url, GET, b"x-a: 1"), answered]
    for one in silent:
        with one:
            assert one.recv(1000) == b""
    assert time.monotonic() - begun < 20


def test_a_head_without_an_end_is_given_up(at):
    """Every piece of it was added to all that had come, so that one connection held up all."""
    url, _ = at
    sent = 0
    with connected(url, GET, b"x-a: ") as endless, contextlib.suppress(OSError):  # closed
        while sent < 10_000_000:
            endless.sendall(b"a" * 10_000)
            sent += 10_000
            time.sleep(0.001)
    assert sent < 5_000_000  # what the system's buffers hold
    with httpx.Client(base_url=url) as http:
        assert http.get("/healthz", headers={"x-a": "a" * 9000}).status_code == 200
        assert http.get("/healthz", headers={"x-a": "a" * 9000}).status_code == 200  # once more


def test_a_body_an_answer_and_a_socket_take_longer_than_a_head(at):
    url, render = at
    path = f"/api/v1/renders/{render}"
    post = b"POST /api/v1/renders HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 50000\r\n\r\n"
    body = b"{" * 50_000
    head = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nx-a: {'a' * 5000}".encode()
    with (
        connected(url, post) as slow,
        websocket.connect(f"ws{url[4:]}{path}/stream") as stream,
    ):
        first = stream.recv()
        time.sleep(1.0)
        slow.sendall(body + head)  # the end of a request and the beginning of another are together
        assert slow.recv(1000).startswith(b"HTTP/1.1 422")  # it is no JSON
        slow.sendall(b"\r\n\r\n")
        assert slow.recv(1000).startswith(b"HTTP/1.1 200")
        assert first.startswith('{"type":"init"')
        assert isinstance(stream.recv(), bytes)
