"""Frames and seconds are read as they were meant, or refused with what to write."""

import pytest

from longreel.jobs.spans import parse_length, parse_section


@pytest.mark.parametrize(
    ("asked", "frames"),
    [("24", 24), ("7", 7), ("-4", -4), ("1s", 16), ("1.1s", 20), (" 12s ", 192), ("0.01s", 4)],
)
def test_a_length_is_in_frames_or_in_seconds_of_whole_latents(asked, frames):
    assert parse_length(asked, fps=16, frames_per_latent=4) == frames


@pytest.mark.parametrize(
    ("asked", "section"),
    [("32..64", (32, 64)), ("2s..4s", (32, 64)), ("0..1.5s", (0, 24)), ("-4..8", (-4, 8))],
)
def test_a_section_is_its_first_frame_and_the_one_after_its_last(asked, section):
    assert parse_section(asked, fps=16) == section


def test_a_time_is_as_exact_as_it_is_written():
    """1.12 s at 25 a second are 28 frames, and in floating point a little more."""
    assert parse_length("1.12s", fps=25, frames_per_latent=4) == 28
    assert parse_section("0s..4.48s", fps=25) == (0, 112)


@pytest.mark.parametrize("asked", ["", "s", "1.5", "4m", "1e3", "12 s s", "\u0661\u0662"])
def test_what_is_no_length_is_refused(asked):
    with pytest.raises(ValueError, match=r"names no frames; give a whole number of them, or sec"):
        parse_length(asked, fps=16, frames_per_latent=4)


def test_what_is_no_section_is_refused():
    with pytest.raises(ValueError, match=r"redo=32-64 is no section .* as 32\.\.64, or"):
        parse_section("32-64", fps=16)
    with pytest.raises(ValueError, match=r"redo= names no frames"):
        parse_section("..64", fps=16)
