"""Contexts as HTML: nothing from a corpus becomes markup, and colors follow the rule."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.html import tokens as token_view
from sae_engine.schema.features import Context, TokenLogit

_NASTY = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            '"><img src=x onerror=y>',
            "' onmouseover='x",
            "&lt;b&gt;",
            "</span></div>",
            "\u202egnp.exe",
            "$x$ *a* _b_ :smile: [l](http://x)",
            "\x00\n\t\x7f\xa0",
        ]
    ),
)
_OURS = {"div", "span", "b", "i", "code", "small"}
_ATTRIBUTES = {"class", "style", "title", "data-v"}


class _Reader(HTMLParser):
    """Collects the tags, attributes and text that a browser would see."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.open = 0
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open += 1

    def handle_endtag(self, tag: str) -> None:
        self.open -= 1

    def handle_data(self, data: str) -> None:
        self.text += data


def _read(markup: str) -> _Reader:
    reader = _Reader()
    reader.feed(markup)
    reader.close()
    return reader


@st.composite
def contexts(draw: st.DrawFn) -> Context:
    tokens = draw(st.lists(_NASTY, min_size=1, max_size=8))
    values = draw(
        st.lists(st.floats(0, 100), min_size=len(tokens), max_size=len(tokens)),
    )
    peak = max(range(len(tokens)), key=values.__getitem__)
    return Context(
        tokens=tokens,
        activations=values,
        activation=values[peak],
        peak=peak,
        position=peak,
        row=0,
        copies=draw(st.integers(1, 3)),
    )


@given(contexts(), st.booleans())
def test_no_token_becomes_markup_and_every_token_is_shown(context: Context, full: bool) -> None:
    largest = token_view.largest_activation([context])
    for markup in (
        token_view.context_lines([context], largest, full=full),
        token_view.example(context),
    ):
        seen = _read(markup)
        assert seen.tags <= _OURS
        assert seen.attributes <= _ATTRIBUTES
        assert seen.open == 0
        text = "".join(map(token_view.visible, context.tokens))
        assert text in seen.text.replace("↵\n", "↵")


@pytest.mark.parametrize(
    ("tokens", "lines"),
    [(["a:\n", "    b\n\nc"], ["a:↵", "    b↵", "↵", "c"]), (["a", "b"], ["ab"])],
)
def test_a_full_text_keeps_its_lines_and_a_snippet_has_one(
    tokens: list[str], lines: list[str]
) -> None:
    context = Context(
        tokens=tokens, activations=[0, 1], activation=1, peak=1, position=1, row=0, copies=1
    )
    full = _read(token_view.context_lines([context], 1, full=True)).text
    assert full.endswith("\n".join(lines))
    assert "\n" not in _read(token_view.context_lines([context], 1)).text


@given(_NASTY, _NASTY, _NASTY)
def test_a_chip_escapes_its_token_its_tip_and_its_count(text: str, tip: str, count: str) -> None:
    seen = _read(token_view.chip(text, title=tip, count=count))
    assert seen.tags <= _OURS
    assert seen.attributes <= _ATTRIBUTES
    assert token_view.visible(text.strip(" ")) in seen.text


@given(_NASTY)
def test_a_logit_column_escapes_its_tokens(text: str) -> None:
    logits = [TokenLogit(id=0, text=text, value=-1.5)]
    seen = _read(token_view.logit_column(logits, sign="negative"))
    assert seen.tags <= _OURS
    assert "-1.50" in seen.text


@given(st.floats(1e-9, 1), st.floats(1e-6, 1e6))
def test_opacity_follows_the_logarithmic_rule(ratio: float, largest: float) -> None:
    expected = 0.05 + 0.95 * math.log10(1 + 9 * ratio)
    assert token_view.opacity(ratio * largest, largest) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("activation", "largest", "opacity"),
    [(0, 1, 0), (-1, 1, 0), (0, 0, 0), (1, 1, 1), (2, 1, 1), (1e-12, 1, 0.05)],
)
def test_opacity_is_zero_when_silent_and_one_at_the_maximum(
    activation: float, largest: float, opacity: float
) -> None:
    assert token_view.opacity(activation, largest) == pytest.approx(opacity)


def test_color_is_relative_to_the_maximum_over_all_shown_examples() -> None:
    weak = _context([0.0, 1.0])
    strong = _context([0.0, 10.0])
    assert token_view.largest_activation([weak, strong]) == 10
    markup = token_view.context_lines([weak], 10)
    assert f"--o:{0.05 + 0.95 * math.log10(1.9):.2f}" in markup


def test_a_silent_token_has_no_color() -> None:
    assert token_view.token_spans([" a", " b"], [0.0, 0.0], 1.0) == " a b"


def test_a_snippet_is_centered_on_the_peak() -> None:
    values = [0.0] * 60
    values[40] = 2.0
    context = _context(values, peak=40)
    markup = token_view.context_lines([context], 2.0)
    left, middle, right = re.split(r'<span class="[pr]">', markup.split('class="l"')[1])
    reach = token_view.SNIPPET_TOKENS
    assert f"t{40 - reach}" in left
    assert f"t{40 - reach - 1}" not in left
    assert "t40" in middle
    assert _read(right).text.split()[-1] == "t59"


def test_folded_duplicates_say_how_many_they_are() -> None:
    assert "×3" in token_view.context_lines([_context([1.0], copies=3)], 1.0)
    assert "×" not in token_view.context_lines([_context([1.0])], 1.0)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", "a↵b"),
        ("\t", "⇥"),
        ("\x00", "␀"),
        ("\x1b", "␛"),
        ("\u202e", "‹202E›"),
        ("\u200b", "‹200B›"),
        ("é日🙂", "é日🙂"),
    ],
)
def test_invisible_characters_become_visible(text: str, shown: str) -> None:
    assert token_view.visible(text) == shown


@pytest.mark.parametrize(
    ("token", "spaces"), [(" a", "␣"), ("a ", "␣"), ("  ", "␣␣"), ("\n       ", "␣×7"), ("a", "")]
)
def test_a_chip_shows_the_outer_spaces_of_its_token(token: str, spaces: str) -> None:
    assert "".join(re.findall("␣[␣×\\d]*", token_view.chip(token))) == spaces


def _context(values: list[float], *, peak: int | None = None, copies: int = 1) -> Context:
    at = len(values) - 1 if peak is None else peak
    return Context(
        tokens=[f" t{i}" for i in range(len(values))],
        activations=values,
        activation=values[at],
        peak=at,
        position=at,
        row=0,
        copies=copies,
    )
