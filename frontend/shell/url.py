"""The URL as the state of a page: read its values, change them, tie widgets to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

import streamlit as st

from frontend.shell.limits import as_number, out_of_bounds, say_wrong, too_long

_Choice = TypeVar("_Choice")
LARGEST_IN_A_BOX = 2**53 - 1
"""Of a browser's number."""


def param(name: str) -> str | None:
    """A value of the URL's query; an empty one is None."""
    return st.query_params.get(name) or None


def int_param(name: str) -> int | None:
    """A whole number of the URL's query, at least 0; anything else is None."""
    value = as_number(param(name) or "")
    return int(value) if value is not None and value >= 0 else None


def float_param(name: str) -> float | None:
    """A finite number of the URL's query; anything else is None."""
    try:
        value = float(param(name) or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def flag_param(name: str) -> bool:
    """Whether a value of the URL's query is on."""
    return param(name) in ("1", "True")


def choice_param(name: str, choices: Sequence[_Choice]) -> _Choice | None:
    """One of `choices` from the URL's query; anything else is None."""
    given = param(name)
    return next((choice for choice in choices if choice == given), None)


def say_unknown(**choices: Sequence[str]) -> None:
    """Name the values of the URL's query that a page does not know, in whose place it shows its
    defaults.
    """
    for name, known in choices.items():
        given = param(name)
        if given is not None and given not in known:
            say_wrong(f"{name}={given[:40]} in the address is none of {', '.join(known)}.")


def list_param(name: str) -> list[str]:
    """The parts of a comma-separated value of the URL's query, without duplicates."""
    parts = (part.strip() for part in (param(name) or "").split(","))
    return list(dict.fromkeys(part for part in parts if part))


def set_param(name: str, value: object | None) -> None:
    """Change one value of the URL's query; None removes it."""
    if value in (None, ""):
        st.query_params.pop(name, None)
    else:
        st.query_params[name] = str(value)


def bound(
    name: str, value: object, *, default: object = None, clears: Sequence[str] = ("cursor",)
) -> tuple[str, Callable[[], None]]:
    """Key and callback that tie a widget to the URL: the URL leads, the widget writes it.

    A change also removes the values named by `clears`, which no longer fit.
    """
    key = f"url:{name}"
    st.session_state[key] = value

    def write() -> None:
        chosen = st.session_state[key]
        set_param(name, None if chosen == default else chosen)
        for other in clears:
            set_param(other, None)

    return key, write


def limited(
    title: str, name: str, text: str, most: int | None, *, clears: Sequence[str] = ("cursor",)
) -> tuple[str, Callable[[], None], str]:
    """The same for a box of text, with what is wrong with its length.

    A text that is too long stays in the box and out of the URL.
    """
    key, write = bound(name, text, clears=clears)
    kept = f"too-long:{title}:{param('id')}"
    before, typed = st.session_state.get(kept, (None, ""))
    if before == text:
        st.session_state[key] = typed
    else:
        st.session_state.pop(kept, None)

    def check() -> None:
        typed: str = st.session_state[key]
        if most is not None and too_long(typed, most):
            st.session_state[kept] = text, typed
        else:
            st.session_state.pop(kept, None)
            write()

    return key, check, "" if most is None else too_long(st.session_state[key], most)


def bound_text(
    title: str,
    name: str,
    value: str,
    *,
    placeholder: str,
    search: bool = False,
    show_title: bool = False,
    max_chars: int | None = None,
    width: int | Literal["stretch"] = "stretch",
) -> bool:
    """A line of text tied to the URL; whether it is short enough, which it says if not."""
    key, write, problem = limited(title, name, value, max_chars)
    st.text_input(
        title,
        key=key,
        on_change=write,
        placeholder=placeholder,
        icon=":material/search:" if search else None,
        label_visibility="visible" if show_title else "collapsed",
        width=width,
    )
    say_wrong(problem)
    return not problem


class Entry(NamedTuple):
    """A number of the URL."""

    value: float | None
    """None if it is wrong, or if there is neither a number nor a default."""
    problem: str
    """What is wrong with it; empty if nothing is."""


def number_param(
    name: str,
    title: str,
    low: float,
    high: float | None = None,
    *,
    default: float | None = None,
    whole: bool = True,
) -> Entry:
    """A number of the URL's query between bounds; `title` names it in the problem."""
    text = param(name)
    if text is None:
        return Entry(default, "")
    problem = out_of_bounds(title, text, low, high, whole=whole)
    return Entry(None if problem else as_number(text, whole=whole), problem)


def bound_number(
    title: str,
    name: str,
    low: int,
    high: int | None = None,
    *,
    default: int | None = None,
    clears: Sequence[str] = ("cursor",),
    show_title: bool = True,
    tip: str | None = None,
    placeholder: str | None = None,
    width: int,
) -> Entry:
    """A box for a whole number tied to the URL; a wrong one stays in both, with what is wrong."""
    entry = number_param(name, title, low, high, default=default)
    typed = as_number(param(name) or "")
    shown = entry.value if typed is None else typed
    fits = shown is not None and abs(shown) <= LARGEST_IN_A_BOX
    key, write = bound(name, shown if fits else None, default=default, clears=clears)
    st.number_input(
        title,
        value=None,
        step=1,
        key=key,
        on_change=write,
        label_visibility="visible" if show_title else "collapsed",
        help=tip,
        placeholder=placeholder,
        width=width,
    )
    say_wrong(entry.problem)
    return entry


def bound_toggle(title: str, name: str) -> bool:
    """A switch tied to the URL, off by default."""
    key, write = bound(name, flag_param(name), default=False)
    return st.toggle(title, key=key, on_change=write)


def bound_choice(
    title: str,
    name: str,
    options: Sequence[_Choice],
    chosen: _Choice,
    *,
    default: _Choice,
    label: Callable[[_Choice], str] = str,
    show_title: bool = False,
    tip: str | None = None,
) -> None:
    """A segmented control tied to the URL."""
    key, write = bound(name, chosen, default=default)
    st.segmented_control(
        title,
        options,
        key=key,
        on_change=write,
        format_func=label,
        label_visibility="visible" if show_title else "collapsed",
        help=tip,
        required=True,
    )
