"""What libraries say, inside our own sentences."""

from __future__ import annotations

from sae_engine.errors import MAX_CAUSE, cause_of


def test_a_cause_is_one_line_of_limited_length() -> None:
    assert cause_of(ValueError("no header")) == "no header"
    assert cause_of(ValueError("first\n  second")) == "first second"
    assert cause_of(KeyError()) == "KeyError"
    assert cause_of(ValueError("x" * MAX_CAUSE)) == "x" * MAX_CAUSE
    assert cause_of(ValueError("x" * 5_000)) == "x" * MAX_CAUSE + "…"
