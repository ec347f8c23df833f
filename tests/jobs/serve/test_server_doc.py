"""docs/server.md says what the server does: its options, calls, bounds and measures."""

import json
import re
from pathlib import Path

import typer

from longreel.jobs.cli import app
from longreel.jobs.serve.keeper import _SHUTDOWN_S, _STOP_S, MAX_ATTEMPTS
from longreel.jobs.serve.limits import Limits
from longreel.jobs.serve.metrics import Metrics

DOCS = Path(__file__).resolve().parents[3] / "docs"
TEXT = (DOCS / "server.md").read_text(encoding="utf-8")
FLAT = " ".join(TEXT.split())
WORDS = {2: "two", 3: "three"}


def test_the_table_of_options_is_that_of_the_command():
    shown = dict(re.findall(r"^\| `(--[\w-]+)` \| `?([^|`]*?)`? (?:\([^|]*)?\|", TEXT, re.M))
    options = {}
    for parameter in typer.main.get_command(app).commands["serve"].params:
        if parameter.name not in ("help", "overrides"):
            options[parameter.opts[0]] = parameter.default
    assert shown.keys() == options.keys()
    for name, default in options.items():
        if default is not None:
            assert shown[name] == str(default)


def test_the_table_of_calls_has_every_path_of_the_native_api():
    paths = json.loads((DOCS / "openapi.json").read_text(encoding="utf-8"))["paths"]
    native = {path for path in paths if path.startswith("/api/v1/")}
    named = set()
    for first in re.findall(r"^\| (`(?:GET|POST|DELETE) .*?`) \|", TEXT, re.M):
        for path in re.findall(r"`(?:\w+ )?([/.][^`?]*)", first):
            named.add(path.replace("...", "/api/v1/renders/{id}"))
    assert {path for path in native if "/hls/" not in path} | {
        "/api/v1/renders/{id}/hls/index.m3u8"
    } == named


def test_the_bounds_are_those_that_requests_are_held_to():
    limits = Limits()
    height = limits.pixels // 1920
    for bound in (
        f"a request's head of {limits.head_bytes >> 10} KiB within {limits.head_s:g} s",
        f"a body of {limits.body_bytes >> 20} MiB within {limits.body_s:g} s",
        f"{limits.prompt_chars} characters of a prompt",
        f"{limits.frames} frames of 1920 x {height}, {limits.steps} steps",
        f"pictures of {limits.upload_pixels // 10**6} million pixels",
        f"{limits.writes} changes at once and {limits.writes_per_s:g} a second",
        f"may have {limits.queued} renders that have not ended",
        f"after {WORDS[limits.idle_s / 60]} minutes without a render",
        f"is tried {WORDS[MAX_ATTEMPTS]} times",
        f"not ended {_STOP_S:g} s after `pause` or `cancel`, or {_SHUTDOWN_S:g} s after SIGTERM",
    ):
        assert bound in FLAT, bound
    assert 1920 * height == limits.pixels


def test_the_measures_are_those_that_prometheus_reads():
    (section,) = re.findall(r"`/metrics` \(Prometheus, prefix `longreel_`\): (.*?)`/healthz`", FLAT)
    named = set(re.findall(r"`(\w+)`", section))
    found = set()
    for metric in Metrics()._registry.collect():
        suffix = "_total" if metric.type == "counter" else ""
        found.add(metric.name.removeprefix("longreel_") + suffix)
    assert named == found
