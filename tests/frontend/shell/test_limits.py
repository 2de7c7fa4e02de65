"""What is said about a text that is too long and a number out of bounds."""

from __future__ import annotations

import pytest

from frontend.shell.limits import as_number, out_of_bounds, too_long


def test_a_text_may_have_as_many_characters_as_are_allowed() -> None:
    assert too_long("é" * 4000, 4000) == ""
    assert too_long("x" * 30_000, 4000) == "At most 4,000 characters (this has 30,000)."


@pytest.mark.parametrize(
    ("text", "low", "high", "whole", "problem"),
    [
        ("0", 0, None, True, ""),
        ("-5", 0, None, True, "N must be a whole number of at least 0 (this is -5)."),
        ("1.5", 0, 9, True, "N must be a whole number from 0 to 9 (this is 1.5)."),
        ("200", 0, 100, False, "N must be a number from 0 to 100 (this is 200)."),
        ("nan", 0, 1, False, "N must be a number from 0 to 1 (this is nan)."),
        ("2000000000", 1, 10**9, True, "N must be a whole number from 1 to 1,000,000,000 (this is"),
        ("0.5", 0, 1, False, ""),
    ],
)
def test_a_number_out_of_bounds_is_named_with_its_bounds(
    text: str, low: float, high: float | None, whole: bool, problem: str
) -> None:
    said = out_of_bounds("N", text, low, high, whole=whole)
    assert said.startswith(problem)
    assert bool(said) == bool(problem)


@pytest.mark.parametrize("text", ["", "abc", "9" * 5000, "1e3", "inf"])
def test_what_is_no_whole_number_is_none(text: str) -> None:
    assert as_number(text) is None
