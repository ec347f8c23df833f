"""The page in a real Chromium: a render that is started from it plays while it is made."""

import os
import time
from pathlib import Path

import httpx
import pytest
from app import on_a_port, open_app
from chromium import chromium
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select
from server import asked, until

from longreel.jobs.serve.tokens import read_tokens

SHOTS = os.environ.get("LONGREEL_SCREENSHOTS", "")  # a folder to keep pictures of the page in


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


def shoot(page, name):
    if SHOTS:
        page.save_screenshot(str(Path(SHOTS) / f"{name}.png"))


def find(page, selector):
    return page.find_element(By.CSS_SELECTOR, selector)


def video_of(page):
    return page.execute_script(
        "const v = document.getElementById('video');"
        "return {time: v.currentTime, ready: v.readyState, width: v.videoWidth,"
        " error: v.error && v.error.message}"
    )


def test_a_render_started_from_the_page_plays_while_it_is_made(page, server):
    page.get(server.url)
    until(lambda: find(page, "#desk"), lambda desk: desk.is_displayed())
    shoot(page, "empty")
    find(page, "#prompt").send_keys("a red circle drifts <b>slowly</b> to the right")
    find(page, "#seconds").send_keys("60")
    assert Select(find(page, "#preset")).first_selected_option.text == "tiny"
    find(page, "#ask button").click()
    until(lambda: find(page, "#right"), lambda right: right.is_displayed())
    playing = until(lambda: video_of(page), lambda video: video["time"] > 0.5)
    assert playing["error"] is None
    assert playing["width"] == 96
    assert find(page, "#state").text.startswith("running"), "it plays before it is done"
    later = until(lambda: video_of(page), lambda video: video["time"] > playing["time"] + 0.3)
    assert later["error"] is None
    final = until(
        lambda: page.find_elements(By.CSS_SELECTOR, "#blocks i.final"), lambda found: len(found) > 1
    )
    assert len(final) < len(page.find_elements(By.CSS_SELECTOR, "#blocks i"))
    until(lambda: find(page, "#stages").text, lambda text: "% busy" in text)
    shoot(page, "running")

    find(page, "#next").send_keys("a blue square rests")
    find(page, "#change button").click()
    until(lambda: find(page, "#next").get_attribute("value"), lambda value: value == "")
    assert find(page, "#note").text == ""
    find(page, "#cancel").click()
    until(lambda: find(page, "#state").text, lambda text: text.startswith("cancelled"))
    assert find(page, "#download").is_displayed()
    assert "<b>slowly</b>" in find(page, "#title").text
    shoot(page, "cancelled")


def test_a_finished_render_plays_to_its_end_and_seeks(page, server):
    page.get(server.url)
    until(lambda: find(page, "#desk"), lambda desk: desk.is_displayed())
    find(page, "#prompt").send_keys("a short one")
    find(page, "#seconds").send_keys("3")
    find(page, "#ask button").click()
    until(lambda: find(page, "#state").text, lambda text: text.startswith("done"))
    page.refresh()
    until(lambda: page.find_elements(By.CSS_SELECTOR, "#queue button"), bool)[0].click()
    until(lambda: video_of(page), lambda video: video["ready"] >= 2)
    page.execute_script("document.getElementById('video').currentTime = 2.5")
    seen = until(lambda: video_of(page), lambda video: video["time"] >= 2.5 and video["ready"] >= 2)
    assert seen["error"] is None
    length = page.execute_script("return document.getElementById('video').duration")
    assert length == pytest.approx(25 / 8, abs=0.01)
    shoot(page, "done")
    row = find(page, "#queue button")
    more = f"{server.url}/api/v1/renders/{row.get_attribute('data-render')}/extend"
    assert httpx.post(more, json={"frames": 8}).status_code == 200
    longer = until(
        lambda: page.execute_script("return document.getElementById('video').duration"),
        lambda length: length is not None and length == pytest.approx(33 / 8, abs=0.01),
    )
    assert longer > length
    assert row.is_displayed(), "a row that is pressed stays while the list is looked at"


def test_what_is_being_made_is_shown_however_long_the_queue_behind_it_is(page, tmp_path):
    with open_app(tmp_path / "home") as app, on_a_port(app) as url:
        queue = app.state.context.queue
        first, *_ = [
            httpx.post(f"{url}/api/v1/renders", json=asked(frames=1)).json()["id"]
            for _ in range(32)
        ]
        assert queue.take_next(1, time.time()).render == first
        page.get(url)
        row = f"#queue button[data-render='{first}']"
        until(lambda: page.find_elements(By.CSS_SELECTOR, row), bool)[0].click()
        until(lambda: find(page, "#state").text, lambda text: text.startswith("running"))
        queue.end(first, "failed", time.time(), {"code": "bug", "message": "for a test"})
        until(lambda: find(page, "#state").text, lambda text: text.startswith("failed: for a"))
        until(lambda: page.find_elements(By.CSS_SELECTOR, row), lambda found: not found)
        page.get("about:blank")  # or it would go on to ask a server that is gone


def test_the_page_has_no_errors_of_its_own(page):
    """Whatever Chromium has to complain about, such as a policy that stops a style."""
    log = [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    assert log == []


def test_that_a_server_is_away_is_said_as_long_as_it_is(page, tmp_path):
    with open_app(tmp_path / "home") as app, on_a_port(app) as url:
        page.get(url)
        until(lambda: find(page, "#desk"), lambda desk: desk.is_displayed())
        page.execute_script(
            "window.kept = window.fetch; window.fetch = () => Promise.reject(new Error('away'))"
        )
        until(lambda: find(page, "#note").text, lambda text: text == "away")
        page.execute_script("window.fetch = window.kept")
        until(lambda: find(page, "#note").text, lambda text: text == "")
        page.get("about:blank")


def test_the_page_asks_for_a_token_and_keeps_none(page, tmp_path):
    token = "a-token-of-more-than-sixteen-characters"
    (tmp_path / "tokens").write_text(token)
    tokens = read_tokens(tmp_path / "tokens")
    with open_app(tmp_path / "home", tokens=tokens) as app, on_a_port(app) as url:
        page.get(url)
        until(lambda: find(page, "#login"), lambda login: login.is_displayed())
        shoot(page, "login")
        find(page, "#token").send_keys("a wrong one of enough characters")
        find(page, "#login button").click()
        until(lambda: find(page, "#note").text, lambda text: "no token" in text)
        find(page, "#token").clear()
        find(page, "#token").send_keys(token)
        find(page, "#login button").click()
        until(lambda: find(page, "#desk"), lambda desk: desk.is_displayed())
        kept = page.execute_script("return document.cookie + JSON.stringify({...localStorage})")
        assert token not in kept
