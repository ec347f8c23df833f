"""Where segments of a video may end."""

from longreel.jobs.render import plan_render
from longreel.pipeline import cuts


def test_a_stream_without_end_keeps_the_ends_of_a_bounded_number_of_segments(monkeypatch):
    monkeypatch.setattr(cuts, "_LOOKED_BACK", 8)
    endless = plan_render("a cat", preset="tiny", frames=0).cuts
    found = [endless.ends(block) for block in range(200)]
    assert found.count(True) > 20
    assert len(endless._ends) <= 8
    assert [endless.ends(block) for block in range(195, 200)] == found[195:]
