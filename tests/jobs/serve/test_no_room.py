"""A full disk, or too many open files, is nobody's fault and may pass: 503, and nothing is left."""

import errno
import sqlite3

import pytest
from app import call, open_app
from server import asked

from longreel.jobs.home.home import Home
from longreel.jobs.serve.queue import Queue

FULL = OSError(errno.ENOSPC, "No space left on device", "/secret")


@pytest.mark.parametrize(
    ("owner", "method", "error", "status", "code"),
    [
        (Home, "_write", FULL, 503, "no_room"),
        (Queue, "add", sqlite3.OperationalError("database or disk is full"), 503, "no_room"),
        (Queue, "counts", KeyError("a bug"), 500, "internal_error"),
        (Queue, "counts", PermissionError(errno.EACCES, "no"), 500, "internal_error"),
    ],
)
def test_what_is_no_fault_of_a_request_is_said_and_leaves_nothing(
    tmp_path, monkeypatch, owner, method, error, status, code
):
    def fail(*arguments):
        raise error

    with open_app(tmp_path) as app:
        monkeypatch.setattr(owner, method, fail)
        answer = call(app, "POST", "/api/v1/renders", json=asked(frames=1))
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["code"] == code
        assert answer.json()["error"]["type"] == "server_error"
        assert ("retry-after" in answer.headers) == (status == 503)
        assert "secret" not in answer.text
        assert not Home(tmp_path).names()
        monkeypatch.undo()
        assert call(app, "POST", "/api/v1/renders", json=asked(frames=1)).status_code == 201
