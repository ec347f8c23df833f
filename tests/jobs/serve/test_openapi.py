"""The OpenAPI document is kept, is true of the code, and hides no answer."""

import json
from pathlib import Path

import hypothesis
import pytest
import schemathesis
from app import call, made, on_a_port, open_app
from hypothesis import HealthCheck

from longreel.jobs.render import plan_render
from longreel.jobs.serve.limits import Limits
from longreel.jobs.serve.schemas import CreateRender

ROOT = Path(__file__).resolve().parents[3]
KEPT = ROOT / "docs" / "openapi.json"


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    limits = Limits(frames=100, writes=10**9, queued=10**9)
    with open_app(tmp_path_factory.mktemp("home"), limits=limits) as app:
        yield app


def test_the_document_that_is_kept_is_that_of_the_code(app):
    """`make openapi` writes it anew."""
    assert json.loads(KEPT.read_text()) == app.openapi()


def test_every_operation_of_ours_has_an_example_or_needs_no_body(app):
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            if body and path.startswith("/api"):
                name = body["schema"]["$ref"].rpartition("/")[2]
                assert app.openapi()["components"]["schemas"][name]["examples"], (method, path)


@pytest.mark.parametrize("example", CreateRender.model_config["json_schema_extra"]["examples"])
def test_a_request_that_is_shown_can_be_met(example):
    shown = CreateRender(**example)
    plan_render(
        shown.prompt,
        preset=shown.preset,
        frames=shown.frames,
        prompt_at=[(change.seconds, change.prompt) for change in shown.prompt_at],
        overrides=[f"{key}={value}" for key, value in shown.settings.items()],
    )


def operations(app):
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def test_the_document_says_who_is_let_in_and_when_to_come_back(app):
    assert [*app.openapi()["components"]["securitySchemes"]] == ["HTTPBearer"]
    for method, path, operation in operations(app):
        answers = operation["responses"]
        assert ("security" in operation) == (path not in ("/healthz", "/readyz")), path
        assert ("429" in answers) == (method in ("POST", "DELETE")), (method, path)
        for status in {"429", "503"} & answers.keys():
            assert "retry-after" in answers[status]["headers"], (method, path)


def test_the_document_has_what_is_answered_of_damaged_files_and_to_who_knows_them(tmp_path):
    with open_app(tmp_path) as app:
        render = made(app, frames=1)
        statuses = []

        def check(headers):
            for method, path, operation in operations(app):
                if method == "GET" and "{id}" in path and "characters" not in path:
                    path = path.replace("{id}", render).replace("{name}", "000000")
                    status = call(app, method, path, headers=headers).status_code
                    assert str(status) in operation["responses"], path
                    statuses.append(status)

        tags = [
            call(app, "GET", f"/api/v1/renders/{render}{way}").headers["etag"]
            for way in ("", "/video")
        ]
        check({"if-none-match": ", ".join(tags)})
        assert statuses.count(304) == 3
        (tmp_path / "renders" / render / "manifest.json").write_text("{")
        app.state.context.files._open.clear()
        check({})
        assert 409 in statuses


@pytest.fixture(scope="module")
def url(app):
    with on_a_port(app) as url:
        yield url


@pytest.fixture(scope="module")
def known(app):
    return made(app, frames=17)


@pytest.fixture(scope="module")
def schema(app, url):
    return schemathesis.openapi.from_url(f"{url}/api/v1/openapi.json")


@pytest.mark.parametrize("examples", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_no_request_gets_an_answer_that_is_not_documented(app, schema, known, examples):
    """Three kinds of path: a render that is there, and whatever else a path may hold."""
    checks = [
        schemathesis.checks.not_a_server_error,
        schemathesis.checks.status_code_conformance,
        schemathesis.checks.content_type_conformance,
        schemathesis.checks.response_schema_conformance,
    ]
    for found in schema.get_all_operations():
        operation = found.ok()

        @hypothesis.seed(1)
        @hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=[*HealthCheck],
            phases=[hypothesis.Phase.generate],
        )
        @hypothesis.given(case=operation.as_strategy(), there=hypothesis.strategies.booleans())
        def run(case, there):
            if there and "id" in case.path_parameters and case.method != "DELETE":
                case.path_parameters["id"] = known
            case.call_and_validate(checks=checks, timeout=60)
            if there and case.path.endswith(("/extend", "/redo")):
                for way in ("cancel", "drop"):  # or its events would have no end: nobody makes it
                    call(app, "POST", f"/api/v1/renders/{known}/{way}")

        run()
