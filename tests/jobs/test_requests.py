"""What a call from Python is given of another kind is refused by its name, before it is used."""

from pathlib import Path

import pytest
from command import SMALL

import longreel
from longreel.jobs.render import plan_render


def test_two_numbers_of_frames_are_one_too_many():
    with pytest.raises(ValueError, match=r"^frames=9 and video\.frames=5 are both.*leave one out"):
        plan_render("a cat", frames=9, overrides=["video.frames=5"])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"prompt": None}, r"^prompt=None is no text"),
        ({"prompt_at": [(0.1, 3)]}, r"^prompt_at=0\.1: prompt=3 is no text"),
        ({"prompt_at": {2: "a dog"}}, r"^prompt_at=\{2: 'a dog'\} is no list .*=\[\(4\.0, 'a dog'"),
        ({"prompt_at": [("soon", "a dog")]}, r"^prompt_at=\[\('soon', 'a dog'\)\] is no list"),
        ({"preset": 5}, r"^preset=5 is no text, .*path of a \.yaml file as text"),
        ({"preset": Path("a.yaml")}, r"^preset=PosixPath\('a\.yaml'\) is no text"),
        ({"image": 3}, r"^image=3 is no path, .*text or as a pathlib\.Path"),
        ({"image": b"a.png"}, r"^image=b'a\.png' is no path"),
        ({"image": ""}, r"^image is blank, so no file is meant; name one"),
        ({"frames": "nine"}, r"^video\.frames=nine is not a whole number"),
        ({"frames": 9.5}, r"^video\.frames=9\.5 is not a whole number"),
        ({"seed": "one"}, r"^seed='?one"),
        ({"seed": 0.5}, r"^seed=0\.5"),
        ({"overrides": "sampling.steps=3"}, r"give a list: overrides=\['sampling\.steps=3'\]"),
        ({"overrides": {"sampling.steps": 3}}, r"^overrides=\{.*\} is no list of texts, .*=20'\]"),
        ({"overrides": [("sampling.steps", 3)]}, r"^overrides=\[.*\] is no list of texts"),
        ({"overrides": None}, r"^overrides=None is no list of texts"),
    ],
)
def test_what_is_of_another_kind_is_refused_by_its_name(asked, message):
    with pytest.raises(ValueError, match=message):
        plan_render(**{"prompt": "a cat", "frames": 9, **asked})


def test_an_output_that_is_no_path_is_refused_too():
    with pytest.raises(ValueError, match=r"^output=5 is no path"):
        longreel.render("a cat", 5, overrides=SMALL)
