"""A journal or manifest that was hurt anywhere opens as a prefix of the truth, or says so."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longreel.configs.load import load_config
from longreel.jobs.home.journal import JournalReader, JournalWriter
from longreel.jobs.home.ledger import ENDS
from longreel.jobs.home.manifest import Manifest, _digest, read_manifest, write_manifest

WORDS = st.text(max_size=12)
EVENTS = st.lists(
    st.fixed_dictionaries({"what": WORDS, "number": st.integers(), "nested": st.lists(WORDS)}),
    min_size=1,
    max_size=4,
)


def write(path, events, attempt=1, size=0):
    writer = JournalWriter(path, attempt, size)
    for event in events:
        writer.append(event="test", **event)
    writer.close()


def read(path):
    reader = JournalReader(path)
    known = ("what", "number", "nested")
    return [{name: event[name] for name in known} for event in reader.poll()], reader.size


@settings(max_examples=5, deadline=None)
@given(EVENTS, EVENTS)
def test_a_journal_cut_at_any_byte_is_a_prefix_and_can_be_gone_on_with(
    tmp_path_factory, events, more
):
    path = tmp_path_factory.mktemp("journal") / "journal"
    write(path, events)
    data = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends)
        found, size = read(path)
        assert (found, size) == (events[:whole], ([0, *ends])[whole])
        if cut % 17 == 0:
            write(path, more, attempt=2, size=size)
            assert read(path)[0] == [*events[:whole], *more]


@settings(max_examples=15, deadline=None)
@given(EVENTS, st.data())
def test_a_flipped_bit_ends_a_journal_where_it_is(tmp_path_factory, events, data):
    path = tmp_path_factory.mktemp("journal") / "journal"
    write(path, events)
    hurt = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, 2**20)) % len(hurt)  # which differs with the digits of times
    hurt[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(hurt)
    assert read(path)[0] == events[: bytes(hurt[:place]).count(b"\n")]


def test_a_reader_hears_every_event_once_and_nothing_of_an_attempt_that_was_taken_over(tmp_path):
    path = tmp_path / "journal"
    reader = JournalReader(path)
    assert reader.poll() == []
    old, heard = JournalWriter(path, 1, 0), []
    old.append(event="first")
    heard += [event["event"] for event in reader.poll()]
    new = JournalWriter(path, 2, reader.size)
    new.append(event="second")
    old.append(event="a stopped process wakes up")
    new.append(event="third")
    heard += [event["event"] for event in reader.poll()]
    assert heard == ["first", "second", "third"]
    assert [event["event"] for event in JournalReader(path).poll()] == heard
    old.close()
    new.close()


@pytest.fixture
def manifest(tmp_path):
    made = Manifest(
        render="20261127-153938-18b3ee",
        created_s=1.5,
        prompt="ein K\u00e4tzchen",
        prompt_at=((2.5, "a dog"),),
        seed=3,
        config=load_config("tiny", ["sampling.guidance_low=null", "blocks.size=3"]),
        image="",
        last_image="",
        output="",
        versions={"longreel": "9.9.9"},
        weights={},
    )
    write_manifest(tmp_path, made)
    return made


def test_a_manifest_comes_back_as_it_was(manifest, tmp_path):
    assert read_manifest(tmp_path) == manifest


def test_a_manifest_that_was_hurt_is_refused(manifest, tmp_path):
    path = tmp_path / "manifest.json"
    data = path.read_bytes()
    for cut in range(0, len(data) - 2, 7):
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match=r"is damaged|is of format"):
            read_manifest(tmp_path)
    values = json.loads(data)
    for name in values.keys() - {"format", "digest"}:
        path.write_text(json.dumps(values | {name: "another"}))
        with pytest.raises(ValueError, match="is damaged"):
            read_manifest(tmp_path)


@pytest.mark.parametrize(
    "more",
    [
        {"mood": "x"},
        {"config": {"video.sharpness": 3}},
        {"config": {"blocks.policy": "newest"}},
    ],
)
def test_what_a_later_version_has_written_is_refused_with_that_version(more, manifest, tmp_path):
    path = tmp_path / "manifest.json"
    values = json.loads(path.read_bytes())
    del values["digest"]
    config = values["config"] | more.get("config", {})
    values |= {**more, "config": config}
    path.write_text(json.dumps(values | {"digest": _digest(values)}))
    with pytest.raises(ValueError, match=r"does not know .* use longreel 9\.9\.9, which wrote it"):
        read_manifest(tmp_path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="is damaged"):
        read_manifest(tmp_path)


def test_another_format_is_refused_with_the_version_that_wrote_it(manifest, tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"format": 7}))
    with pytest.raises(ValueError, match=r"is of format 7 .* use longreel 9\.9\.9, which wrote it"):
        read_manifest(tmp_path)


def test_the_page_of_the_format_has_the_events_that_are_written():
    root = Path(__file__).resolve().parents[3]
    code = "".join(path.read_text() for path in (root / "jobs" / "home").glob("*.py"))
    written = {*re.findall(r'(?:note|tell)\(\s*"(\w+)"|event="(\w+)"', code)}
    page = (root / "docs" / "format.md").read_text(encoding="utf-8")
    table = re.search(r"^\| event \|.*\n.*\n((?:\|.*\n)+)", page, re.M)[1]
    named = {
        name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert named == {one or other for one, other in written} | {*ENDS}
