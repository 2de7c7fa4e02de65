"""What is wrong with what people type into boxes, in one sentence, and its line below the box.

Streamlit's own limits act in the browser, which drops a text that is too long and a number out of
bounds without a word. Read by `url`, and by forms whose values are not part of the address.
"""

from __future__ import annotations

import math

from frontend.html.blocks import html_block
from frontend.html.format import count
from frontend.html.tokens import escaped


def too_long(text: str, most: int) -> str:
    """What is wrong with a text's length; empty if nothing is."""
    if len(text) <= most:
        return ""
    return f"At most {count(most)} characters (this has {count(len(text))})."


def out_of_bounds(
    title: str, text: str, low: float, high: float | None = None, *, whole: bool = True
) -> str:
    """What is wrong with a number; empty if it lies between `low` and `high`."""
    value = as_number(text, whole=whole)
    if value is not None and value >= low and (high is None or value <= high):
        return ""
    kind = "a whole number" if whole else "a number"
    bounds = f"of at least {low:,}" if high is None else f"from {low:,} to {high:,}"
    return f"{title} must be {kind} {bounds} (this is {text[:40]})."


def as_number(text: str, *, whole: bool = True) -> float | None:
    """A text as a finite number, an `int` if it has to be a whole one; None if it is none."""
    try:
        value = int(text) if whole and len(text) < 20 else float(text)
    except ValueError:
        return None
    is_whole = isinstance(value, int)
    return value if math.isfinite(value) and (is_whole or not whole) else None


def say_wrong(problem: str) -> None:
    """Show a problem below its box; nothing if it is empty."""
    if problem:
        html_block(f'<p class="wb-field-problem">{escaped(problem)}</p>')
