"""The URL as the state of a page: read its values, change them, tie widgets to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import streamlit as st

_Choice = TypeVar("_Choice")


def param(name: str) -> str | None:
    """A value of the URL's query; an empty one is None."""
    return st.query_params.get(name) or None


def int_param(name: str) -> int | None:
    """A whole number of the URL's query; anything else is None."""
    text = param(name) or ""
    return int(text) if text.isdecimal() else None


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
) -> None:
    """A line of text tied to the URL."""
    key, write = bound(name, value)
    st.text_input(
        title,
        key=key,
        on_change=write,
        placeholder=placeholder,
        icon=":material/search:" if search else None,
        label_visibility="visible" if show_title else "collapsed",
        max_chars=max_chars,
        width=width,
    )


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
