"""Contexts as HTML: per-token color, text centered on the peak, everything escaped.

Pure functions. Fed by the features' shapes; read by every page that shows text of a corpus.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Iterable, Sequence

from frontend.html.format import number
from sae_engine.schema.features import Context, TokenLogit
from sae_engine.schema.lookup import TextPlace

SNIPPET_TOKENS = 24
"""Tokens shown on either side of the peak in a snippet."""

HOT = 0.675
"""Opacity above which black is easier to read on the color than white."""

_PICTURES = {"\n": "↵", "\t": "⇥", "\r": "␍", "\x7f": "␡", "\xa0": "⍽"}


def opacity(activation: float, largest: float) -> float:
    """How strongly a token is colored: 0.05 + 0.95 log10(1 + 9 r) with r = activation / largest.

    Exactly 0 where the feature does not fire, so that the faintest activation still shows.
    """
    if not (activation > 0 and largest > 0):
        return 0.0
    return 0.05 + 0.95 * math.log10(1 + 9 * min(activation / largest, 1.0))


def visible(text: str) -> str:
    """Text with invisible and reordering characters replaced; not yet escaped."""
    return "".join(_visible_character(character) for character in text)


def _visible_character(character: str) -> str:
    if character in _PICTURES:
        return _PICTURES[character]
    if ord(character) < 0x20:
        return chr(0x2400 + ord(character))
    category = unicodedata.category(character)
    if category in ("Cf", "Cc", "Cs", "Zl", "Zp"):
        return f"‹{ord(character):04X}›"
    return character


def escaped(text: str) -> str:
    """Text from a corpus or a person, safe as HTML content and in a quoted attribute."""
    return html.escape(visible(text), quote=True)


def chip(text: str, *, title: str = "", count: str = "") -> str:
    """A single token with its outer spaces made visible."""
    bare = text.strip(" ")
    lead = text[: len(text) - len(text.lstrip(" "))] if bare else text
    trail = text[len(text.rstrip(" ")) :] if bare else ""
    spaces = [f"<i>{_spaces(len(part))}</i>" if part else "" for part in (lead, trail)]
    note = f"<small>{html.escape(count)}</small>" if count else ""
    tip = f' title="{html.escape(title, quote=True)}"' if title else ""
    code = f"<code>{spaces[0]}{escaped(bare)}{spaces[1]}</code>"
    return f'<span class="wb-chip"{tip}>{code}{note}</span>'


def _spaces(length: int) -> str:
    return "␣" * length if length <= 3 else f"␣×{length}"


def chips(texts: Iterable[str]) -> str:
    """Several chips side by side."""
    return "".join(chip(text) for text in texts)


def largest_activation(contexts: Iterable[Context]) -> float:
    """The maximum over all shown contexts, to which colors are relative; 0 without any."""
    return max((max(c.activations, default=0.0) for c in contexts), default=0.0)


def token_spans(tokens: Sequence[str], activations: Sequence[float], largest: float) -> str:
    """Tokens in order; active ones colored, with their value on hover."""
    return "".join(map(_span, tokens, activations, [largest] * len(tokens)))


def _span(token: str, activation: float, largest: float) -> str:
    strength = opacity(activation, largest)
    if strength == 0:
        return escaped(token)
    hot = ' class="h"' if strength > HOT else ""
    return f'<b{hot} style="--o:{strength:.2f}" data-v="{number(activation)}">{escaped(token)}</b>'


def example(context: Context | None, *, reach: int = 9) -> str:
    """One line of a context, centered on its peak, for lists of features."""
    if context is None:
        return '<span class="wb-muted">no example</span>'
    return _centered(context, largest_activation([context]), reach)


def context_lines(contexts: Sequence[Context], largest: float, *, full: bool = False) -> str:
    """Contexts, one per line: a gutter with the peak's value and token, then the text around it."""
    lines = "".join(_line(context, largest, full) for context in contexts)
    return f'<div class="wb-contexts{" full" if full else ""}">{lines}</div>'


def _line(context: Context, largest: float, full: bool) -> str:
    copies = (
        f'<span class="wb-copies" title="{context.copies} identical contexts, shown once">'
        f"×{context.copies}</span>"
        if context.copies > 1
        else ""
    )
    body = _full(context, largest) if full else _centered(context, largest, SNIPPET_TOKENS)
    gutter = (
        f'<div class="wb-gutter"><span class="wb-value">{number(context.activation)}</span>'
        f"{chip(context.tokens[context.peak])}{copies}</div>"
    )
    where = f"Row {context.row}, position {context.position}"
    return f'<div class="wb-line" title="{where}">{gutter}{body}</div>'


def _full(context: Context, largest: float) -> str:
    """The whole text in its own lines."""
    text = token_spans(context.tokens, context.activations, largest).replace("↵", "↵\n")
    return f'<div class="wb-text">{text}</div>'


def _centered(context: Context, largest: float, reach: int) -> str:
    peak = context.peak
    start, stop = max(0, peak - reach), peak + 1 + reach
    parts = (slice(start, peak), slice(peak, peak + 1), slice(peak + 1, stop))
    left, middle, right = (
        token_spans(context.tokens[part], context.activations[part], largest) for part in parts
    )
    return (
        f'<div class="wb-kwic"><span class="l"><span>{left}</span></span>'
        f'<span class="p">{middle}</span><span class="r"><span>{right}</span></span></div>'
    )


def text_lines(places: Sequence[TextPlace]) -> str:
    """Places of a text, one per line, centered on its last token."""
    lines = "".join(
        f'<div class="wb-line plain" title="Row {place.row}, position {place.position}">'
        f"{_text_around(place)}</div>"
        for place in places
    )
    return f'<div class="wb-contexts">{lines}</div>' if lines else ""


def _text_around(place: TextPlace) -> str:
    left, middle, right = (
        escaped("".join(part))
        for part in (
            place.tokens[: place.last],
            place.tokens[place.last : place.last + 1],
            place.tokens[place.last + 1 :],
        )
    )
    return (
        f'<div class="wb-kwic"><span class="l"><span>{left}</span></span>'
        f'<span class="p">{middle}</span><span class="r"><span>{right}</span></span></div>'
    )


def logit_column(logits: Sequence[TokenLogit], *, sign: str) -> str:
    """Token logits as bars; `sign` is `positive` or `negative` and decides the color."""
    widest = max((abs(logit.value) for logit in logits), default=0.0) or 1.0
    return "".join(
        f'<div class="wb-logit {sign}"><span>{chip(logit.text)}</span>'
        f'<span class="bar"><i style="width:{abs(logit.value) / widest:.0%}"></i></span>'
        f'<span class="num">{logit.value:+.2f}</span></div>'
        for logit in logits
    )


def plotly_text(text: str) -> str:
    """Text from a corpus or a person, escaped for Plotly, which interprets a little HTML."""
    return visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
