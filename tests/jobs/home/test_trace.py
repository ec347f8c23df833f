"""A journal as a Chrome trace: what was made when, and how busy each stage was meanwhile."""

import json

from longreel.jobs.home.home import Home
from longreel.jobs.home.record import RenderRun
from longreel.jobs.home.trace import make_spans, write_trace
from longreel.jobs.render import plan_render


def segment(number, at, busy_s, attempt=1):
    return {
        **{"event": "segment", "attempt": attempt, "time": at, "number": number, "bytes": 9},
        **{"first": 8 * number, "frames": 8, "blocks": [number, number + 1], "busy_s": busy_s},
    }


def test_the_share_of_a_stage_is_of_the_time_between_two_segments():
    events = [
        {"event": "started", "attempt": 1, "time": 100.0},
        segment(0, 102.0, [1.0, 0.5]),
        segment(1, 106.0, [4.0, 0.9]),
        segment(2, 107.0, [4.5, 0.25]),  # the second stage was replaced
        {"event": "edit", "attempt": 1, "time": 199.0, "file": ""},  # days later, it may be
        {"event": "started", "attempt": 2, "time": 200.0},
        segment(3, 201.0, [0.75], attempt=2),  # and then there was one
    ]
    spans = [*make_spans(events)]
    busy = [
        (one["pid"], one["name"], one["ts"] / 1e6, one["args"]["busy"])
        for one in spans
        if one["ph"] == "C"
    ]
    assert busy == [
        *((1, "stage 0", 100.0, 0.5), (1, "stage 1", 100.0, 0.25)),
        *((1, "stage 0", 102.0, 0.75), (1, "stage 1", 102.0, 0.1)),
        *((1, "stage 0", 106.0, 0.5), (1, "stage 1", 106.0, 0.25)),
        (2, "stage 0", 200.0, 0.75),
    ]
    rows = [(one["name"], one["dur"] / 1e6) for one in spans if one["ph"] == "X"]
    assert rows[:3] == [("blocks 0 to 0", 2.0), ("blocks 1 to 1", 4.0), ("blocks 2 to 2", 1.0)]
    assert rows[-2:] == [("attempt 1", 7.0), ("attempt 2", 1.0)]


def test_no_span_is_negative_where_a_clock_was_set_back():
    events = [
        {"event": "started", "attempt": 1, "time": 100.0},
        segment(0, 40.0, [1.0]),
        segment(1, 42.0, [2.0]),
    ]
    spans = [one for one in make_spans(events) if one["ph"] == "X"]
    assert [one["dur"] / 1e6 for one in spans] == [0.0, 2.0, 0.0]


def test_a_render_tells_of_its_stages(tmp_path):
    small = ["video.height=32", "video.width=48", "sampling.steps=2", "model.text_cache="]
    stages = ["parallel.num_stages=2", "parallel.backend=local"]
    plan = plan_render("a cat", preset="tiny", frames=9, overrides=[*small, *stages])
    render = Home(tmp_path / "home").create(plan)
    RenderRun(render).run()
    write_trace(render.path, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    busy = {one["name"]: one["args"]["busy"] for one in events if one["ph"] == "C"}
    assert busy.keys() == {"stage 0", "stage 1"}
    assert all(0 < share <= 1 for share in busy.values())
