"""Who is let in, and what the others are told."""

import pytest
from app import call, on_a_port, open_app
from command import longreel
from server import asked
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from longreel.jobs.serve import run_server
from longreel.jobs.serve.tokens import Tokens, check_host, cookie_of, read_tokens

TOKEN = "a-token-of-more-than-sixteen-characters"


@pytest.mark.parametrize(
    ("path", "headers", "code"),
    [
        ("x/stream", {}, 4401),
        ("x/stream", {"authorization": f"Bearer {TOKEN}", "origin": "http://elsewhere"}, 4403),
        ("x/stream", {"authorization": f"Bearer {TOKEN}"}, 4404),
        ("x/stream?from=-1", {"authorization": f"Bearer {TOKEN}"}, 4422),
    ],
)
def test_a_socket_that_is_refused_says_why(tmp_path, path, headers, code):
    with (
        open_app(tmp_path / "home", tokens=Tokens({"anna": TOKEN})) as app,
        on_a_port(app) as url,
        connect(
            f"{url.replace('http', 'ws')}/api/v1/renders/{path}", additional_headers=headers
        ) as socket,
        pytest.raises(ConnectionClosed) as closed,
    ):
        socket.recv(timeout=30)
    assert closed.value.rcvd.code == code


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    tokens = Tokens({"anna": TOKEN, "ben": TOKEN + "-of-ben"})
    with open_app(tmp_path_factory.mktemp("home"), tokens=tokens) as app:
        yield app


@pytest.fixture(scope="module")
def open_to_us(tmp_path_factory):
    with open_app(tmp_path_factory.mktemp("home")) as app:
        yield app


def every_route(app):
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            yield method.upper(), path.replace("{id}", "x").replace("{number}", "0")


def test_every_route_but_health_asks_for_the_token(guarded):
    routes = [*every_route(guarded)]
    assert len(routes) > 20
    for method, path in routes:
        for headers in ({}, {"authorization": f"Bearer {TOKEN[:-1]}"}, {"authorization": TOKEN}):
            answer = call(guarded, method, path, headers=headers)
            if path in ("/healthz", "/readyz"):
                assert answer.status_code == 200
            else:
                assert answer.status_code == 401, (method, path)
                assert answer.headers["www-authenticate"] == "Bearer"


def test_a_client_sees_its_own_renders_alone(guarded):
    anna, ben = ({"authorization": f"Bearer {t}"} for t in (TOKEN, TOKEN + "-of-ben"))
    made = call(guarded, "POST", "/api/v1/renders", json=asked(frames=1), headers=anna).json()
    path = f"/api/v1/renders/{made['id']}"
    assert call(guarded, "GET", path, headers=anna).status_code == 200
    assert call(guarded, "GET", path, headers=ben).status_code == 404
    assert call(guarded, "DELETE", path, headers=ben).status_code == 404
    assert call(guarded, "GET", "/api/v1/renders", headers=ben).json()["data"] == []


def test_the_page_gets_a_cookie_for_a_token(guarded):
    assert call(guarded, "GET", "/").status_code == 200
    assert call(guarded, "GET", "/session").status_code == 401
    assert call(guarded, "POST", "/session", json={"token": "guess"}).status_code == 401
    answer = call(guarded, "POST", "/session", json={"token": TOKEN})
    assert answer.status_code == 200
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    cookies = {"cookie": f"longreel_session={cookie_of(TOKEN)}"}
    assert call(guarded, "GET", "/session", headers=cookies).json()["client"] == "anna"
    assert call(guarded, "GET", "/api/v1/renders", headers=cookies).status_code == 200
    # ports share cookies: those of another program on this machine come along
    for other in ("a/b=1", 'x={"a": 1}', "a[b]=1", "a@b=1"):
        both = {"cookie": f"{other}; {cookies['cookie']}"}
        assert call(guarded, "GET", "/session", headers=both).json()["client"] == "anna"


def test_pages_of_other_sites_and_foreign_names_are_turned_away(open_to_us, guarded):
    elsewhere = {"origin": "https://evil.example"}
    cookies = {"cookie": f"longreel_session={cookie_of(TOKEN)}"}
    for one, headers in ((open_to_us, elsewhere), (guarded, elsewhere | cookies)):
        answer = call(one, "POST", "/api/v1/renders", json=asked(), headers=headers)
        assert answer.json()["error"]["code"] == "foreign_origin"
    for host in ("evil.example", "["):
        answer = call(open_to_us, "GET", "/api/v1/renders", headers={"host": host})
        assert answer.json()["error"]["code"] == "foreign_host"
    answer = call(open_to_us, "GET", "/api/v1/renders", headers={"origin": "http://["})
    assert answer.json()["error"]["code"] == "foreign_origin"


def test_a_server_without_tokens_stays_on_this_machine(tmp_path):
    with pytest.raises(ValueError, match="token-file"):
        check_host("0.0.0.0", Tokens({}))
    check_host("127.0.0.1", Tokens({}))
    check_host("::1", Tokens({}))
    check_host("0.0.0.0", Tokens({"a": TOKEN}))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no token"),
        ("short", "guessed"),
        (f"a: {TOKEN}\na: {TOKEN}2", "twice"),
        ("\xfc" * 20, "ASCII"),
    ],
)
def test_a_token_file_that_protects_nothing_is_refused(tmp_path, text, word):
    (tmp_path / "tokens").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=word):
        read_tokens(tmp_path / "tokens")


def test_token_files_name_clients(tmp_path):
    (tmp_path / "tokens").write_text(f"# ours\nanna: {TOKEN}\n\n{TOKEN}-2\n")
    tokens = read_tokens(tmp_path / "tokens")
    assert tokens.client_of(TOKEN) == "anna"
    assert tokens.client_of(TOKEN + "-2") == "default"
    assert tokens.client_of(TOKEN + "-3") is None


def test_a_server_lets_in_whom_the_file_that_it_is_given_names(tmp_path, monkeypatch):
    (tmp_path / "tokens").write_text(f"anna: {TOKEN}\n")
    answers = []

    def run(server, sockets):
        app = server.config.app
        for headers in ({}, {"authorization": f"Bearer {TOKEN}"}):
            answers.append(call(app, "GET", "/api/v1/renders", headers=headers).status_code)
        app.state.context.queue.close()
        sockets[0].close()

    monkeypatch.setattr(run_server.uvicorn.Server, "run", run)
    monkeypatch.setattr(run_server, "write_logs", lambda: None)
    where = ["--port", 0, "--home", tmp_path / "home", "--preset", "tiny"]
    assert longreel("serve", *where, "--token-file", tmp_path / "tokens").code == 0
    assert answers == [401, 200]
