"""What a server was started with is under what its clients ask for, and asked by none of them."""

import pytest
from app import call
from texts import TEXTS

from longreel.jobs.serve.app import make_app

OURS = [f"model.text_cache={TEXTS}", "blocks.depth=4", "sampling.guidance=4", "sampling.steps=6"]


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    app = make_app(tmp_path_factory.mktemp("home"), preset="shapes", overrides=OURS)
    app.state.context.ready = True
    yield app
    app.state.context.queue.close()


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({}, {}),
        ({"sampling.guidance_mode": "none"}, {}),
        ({"blocks.policy": "whole"}, {}),
        ({"sampling.steps": 4}, {"preset": "shapes-live"}),
    ],
)
def test_what_a_client_s_choice_leaves_unread_of_it_is_no_fault_of_the_client(app, settings, more):
    body = {"prompt": "a red circle", "frames": 9, "settings": settings, **more}
    answer = call(app, "POST", "/api/v1/renders", json=body)
    assert answer.status_code == 201, answer.text


@pytest.mark.parametrize(
    "settings",
    [
        {"sampling.guidance_mode": "none", "sampling.guidance": 6},
        {"blocks.policy": "causal", "blocks.depth": 2},
    ],
)
def test_what_the_client_itself_asks_for_is_refused_all_the_same(app, settings):
    body = {"prompt": "a red circle", "frames": 9, "settings": settings}
    answer = call(app, "POST", "/api/v1/renders", json=body)
    assert answer.status_code == 422
    assert "would be ignored" in answer.json()["error"]["message"]


def test_what_warms_a_server_up_finds_no_fault_with_it_either(app, caplog):
    app.state.context.intake.warm_up()
    assert caplog.messages == []
