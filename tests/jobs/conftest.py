"""One server for all tests that only need one."""

import httpx
import pytest
from server import serving


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server") / "home") as server:
        yield server


@pytest.fixture(scope="session")
def http(server):
    with httpx.Client(base_url=server.url, timeout=120) as http:
        yield http
