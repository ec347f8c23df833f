"""Every stage of every chain has one seat, and the links between seats make a ring and a fork."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longreel.configs.schema import ParallelConfig
from longreel.parallel.edges import wire
from longreel.parallel.layout import make_layout
from longreel.parallel.link import LinkSpec
from longreel.parallel.messages import Stamp

STAMP = Stamp(render="r", epoch=1)


@st.composite
def layouts(draw):
    stages = draw(st.integers(1, 9))
    cfg = draw(st.sampled_from(["batch", "split"]))
    each = draw(st.integers(0, stages))
    devices = each * (2 if cfg == "split" else 1)
    return make_layout(ParallelConfig(num_stages=stages, cfg=cfg, devices=devices))


@given(layouts())
def test_a_chain_has_every_stage_once_in_order_and_devices_are_even(layout):
    assert len(layout.seats) == layout.num_devices == layout.num_branches * layout.chain_length
    for branch in range(layout.num_branches):
        runs = [seat.stages for seat in layout.seats if seat.branch == branch]
        assert [i for run in runs for i in run] == list(range(layout.num_stages))
        assert max(map(len, runs)) - min(map(len, runs)) <= 1
    assert [seat.branch for seat in layout.seats] == sorted(seat.branch for seat in layout.seats)


def link(start, stop):
    return LinkSpec(kind="local", name=f"{start}-{stop}", host="", port=0, timeout_s=1.0)


OUT = {
    "outlet": "inlet",
    "home": "ring",
    "peers": "inlet",
    "forks": "inlet",
    "merge_out": "merge_in",
}


def ends(layout):
    """(start, stop, by which end) of every link, read off what the actors are given."""
    edges = wire(layout, STAMP, 1.0, link)
    sent, received = {}, {}
    for number, actor in enumerate(edges):
        for name in {*OUT, *OUT.values()}:
            found = getattr(actor, name)
            for spec in found if isinstance(found, tuple) else [found] * (found is not None):
                side = sent if name in OUT else received
                assert spec.name not in side, "two of one end"
                side[spec.name] = number, name
    assert sent.keys() == received.keys()
    for name, (_, out) in sent.items():
        assert received[name][1] == OUT[out]
    return {(sent[name][0], received[name][0], sent[name][1]) for name in sent}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_stages": 1}, set()),
        (
            {"num_stages": 3},
            {(0, 1, "outlet"), (1, 2, "outlet"), (2, 0, "home")},
        ),
        ({"num_stages": 4, "devices": 2}, {(0, 1, "outlet"), (1, 0, "home")}),
        ({"num_stages": 4, "devices": 1}, set()),
        ({"num_stages": 1, "cfg": "split"}, {(0, 1, "forks"), (1, 0, "merge_out")}),
        (
            {"num_stages": 2, "cfg": "split"},
            {
                *((0, 1, "outlet"), (2, 3, "outlet"), (1, 0, "home")),
                *((0, 2, "forks"), (3, 1, "merge_out")),
            },
        ),
        (
            {"num_stages": 5, "cfg": "split", "devices": 2},
            {(0, 1, "forks"), (1, 0, "merge_out")},
        ),
    ],
)
def test_actors_are_joined_to_a_ring_and_a_fork(settings, expected):
    assert ends(make_layout(ParallelConfig(**settings))) == expected


@given(layouts())
def test_every_link_has_two_ends_and_its_own_name(layout):
    rings = layout.chain_length > 1
    hops = layout.num_branches * (layout.chain_length - 1)
    assert len(ends(layout)) == hops + rings + 2 * (layout.num_branches - 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"num_stages": 4, "devices": 5},
            r"devices=5 leaves 1 device without a stage, as .*=batch makes 4; set it to at most 4",
        ),
        ({"num_stages": 2, "cfg": "split", "devices": 6}, r"leaves 2 devices without .* makes 4"),
        (
            {"num_stages": 4, "cfg": "split", "devices": 3},
            r"devices=3 cannot be shared evenly by the two branches .*set it to 4, or .*=batch",
        ),
        (
            {"num_stages": 4, "devices": 2, "backend": "local"},
            r"devices=2 would be ignored, as parallel\.backend=local .*; set .*backend=ray, or",
        ),
        ({"devices": -1}, r"devices=-1 counts nothing"),
        ({"cfg": "both"}, r"parallel\.cfg=both"),
    ],
)
def test_devices_that_stages_cannot_share_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        ParallelConfig(**settings)
