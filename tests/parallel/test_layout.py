"""Every stage of every chain has one seat, and the links between seats make a ring and a fork."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import DeviceMesh

from longreel.configs.parallel import ParallelConfig
from longreel.parallel.edges import wire
from longreel.parallel.errors import ChainBroken
from longreel.parallel.layout import make_layout
from longreel.parallel.link import LinkSpec
from longreel.parallel.mesh import DIMS
from longreel.parallel.messages import Stamp
from longreel.parallel.placement import fewer

STAMP = Stamp(render="r", epoch=1)


@st.composite
def layouts(draw):
    stages = draw(st.integers(1, 9))
    cfg = draw(st.sampled_from(["batch", "split"]))
    ring, ulysses = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    places = draw(st.integers(0, stages))
    return make_layout(
        ParallelConfig(
            num_stages=stages,
            gpus_per_stage=ring * ulysses,
            ring=ring,
            cfg=cfg,
            devices=places * ring * ulysses * (2 if cfg == "split" else 1),
        )
    )


@given(layouts())
def test_a_chain_has_every_stage_once_in_order_and_devices_are_even(layout):
    assert len(layout.seats) == layout.num_devices
    for branch, share in product(range(layout.num_branches), range(layout.num_shares)):
        mine = [seat for seat in layout.seats if (seat.branch, seat.share) == (branch, share)]
        assert len(mine) == layout.chain_length
        runs = [seat.stages for seat in mine]
        assert [i for run in runs for i in run] == list(range(layout.num_stages))
        assert max(map(len, runs)) - min(map(len, runs)) <= 1
    assert [seat.branch for seat in layout.seats] == sorted(seat.branch for seat in layout.seats)
    last = layout.seats[layout.last]
    assert (last.branch, last.share, last.stages.stop) == (0, 0, layout.num_stages)


@settings(deadline=None)
@given(layouts())
def test_devices_stand_where_torch_s_mesh_has_them(layout):
    mesh = layout.mesh
    numbers = torch.arange(mesh.size).reshape(mesh.shape)
    theirs = DeviceMesh("cpu", numbers, mesh_dim_names=DIMS, _init_backend=False, _rank=0)
    for number in range(mesh.size):
        place = mesh.at(number)
        assert theirs.mesh[tuple(place[dim] for dim in DIMS)] == number == mesh.number(**place)
        for dim, name in enumerate(DIMS):
            index = tuple(slice(None) if i == dim else place[d] for i, d in enumerate(DIMS))
            assert theirs.mesh[index].tolist() == list(mesh.line(number, name))


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
    ("fields", "expected"),
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
        (
            {"num_stages": 2, "gpus_per_stage": 2},
            {(0, 2, "outlet"), (1, 3, "outlet"), (2, 0, "home"), (0, 1, "peers")},
        ),
        (
            {"num_stages": 1, "gpus_per_stage": 2, "ring": 2, "cfg": "split"},
            {(0, 1, "peers"), (0, 2, "forks"), (0, 3, "forks"), (2, 0, "merge_out")},
        ),
    ],
)
def test_actors_are_joined_to_a_ring_and_a_fork(fields, expected):
    assert ends(make_layout(ParallelConfig(**fields))) == expected


@settings(deadline=None)
@given(layouts())
def test_every_link_has_two_ends_and_its_own_name(layout):
    rings, shares = layout.chain_length > 1, layout.num_shares
    hops = layout.num_branches * (layout.chain_length - 1) * shares
    forks_and_merge = (layout.num_branches - 1) * (shares + 1)
    assert len(ends(layout)) == hops + rings + forks_and_merge + shares - 1


@settings(deadline=None)
@given(layouts())
def test_every_line_of_devices_is_one_group(layout):
    edges = wire(layout, STAMP, 1.0, link)
    for dim, name in (("ring", "shards"), ("ulysses", "heads")):
        size = getattr(layout.mesh, dim)
        if size == 1:
            assert all(getattr(actor, name) is None for actor in edges)
            continue
        lines = {}
        for number, actor in enumerate(edges):
            group = getattr(actor, name)
            assert group.num == size
            assert layout.mesh.line(number, dim)[group.rank] == number
            lines.setdefault(group.name, set()).add(number)
        assert {frozenset(line) for line in lines.values()} == {
            frozenset(layout.mesh.line(number, dim)) for number in range(layout.mesh.size)
        }


@pytest.mark.parametrize(
    ("fields", "words"),
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
        (
            {"num_stages": 2, "gpus_per_stage": 2, "devices": 3},
            r"devices=3 cannot be shared evenly by stages of several devices, .*set it to 4, or "
            r"parallel\.gpus_per_stage=1",
        ),
        (
            {"num_stages": 2, "gpus_per_stage": 2, "devices": 6},
            r"num_stages=2 of 2 devices with parallel\.cfg=batch makes 4; set it to at most 4",
        ),
        (
            {"gpus_per_stage": 4, "ring": 3},
            r"ring=3 cannot cut parallel\.gpus_per_stage=4 into groups of one size; set it to 1 \(",
        ),
        (
            {"ring": 2},
            r"ring=2 cannot cut .*=1 .*; set parallel\.gpus_per_stage=2, or leave it out",
        ),
        (
            {"gpus_per_stage": 2, "backend": "local"},
            r"gpus_per_stage=2 would be ignored, as parallel\.backend=local .*backend=ray",
        ),
        ({"gpus_per_stage": 0}, r"gpus_per_stage=0 is no number of devices"),
        ({"devices": -1}, r"devices=-1 counts nothing"),
        ({"cfg": "both"}, r"parallel\.cfg=both"),
    ],
)
def test_devices_that_stages_cannot_share_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        ParallelConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "free", "left"),
    [
        ({"num_stages": 4}, 4, {"num_stages": 4}),
        ({"num_stages": 4}, 3, {"num_stages": 3}),
        ({"num_stages": 4}, 1, {"num_stages": 1}),
        ({"num_stages": 3, "gpus_per_stage": 2}, 5, {"num_stages": 2, "gpus_per_stage": 2}),
        ({"num_stages": 3, "cfg": "split"}, 5, {"num_stages": 2, "cfg": "split"}),
        ({"num_stages": 3, "cfg": "split"}, 1, {"num_stages": 1, "cfg": "batch"}),
        ({"num_stages": 8, "devices": 4}, 3, {"num_stages": 8, "devices": 3}),
        ({"num_stages": 8, "devices": 4, "cfg": "split"}, 3, {"devices": 2, "cfg": "split"}),
    ],
)
def test_fewer_devices_run_the_same_work_in_fewer_or_fuller_stages(fields, free, left):
    made = fewer(ParallelConfig(**fields), free)
    assert {name: getattr(made, name) for name in left} == left
    assert made.num_devices <= free
    assert made.gpus_per_stage == fields.get("gpus_per_stage", 1)  # how sums round stays
    make_layout(made)


def test_too_few_devices_for_one_shared_stage_end_the_render_with_the_way_on():
    with pytest.raises(ChainBroken, match=r"1 devices are left, .*gpus_per_stage=2 .* resume the"):
        fewer(ParallelConfig(num_stages=2, gpus_per_stage=2), 1)
