"""An analyzed text as HTML: tokens as chips, their features, the text colored like a context.

Pure functions. Fed by the answers of the playground's calls; read by the playground and a
feature's page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from frontend.html.blocks import feature_link, panel_title, set_link, table
from frontend.html.format import count, counted, number
from frontend.html.marks import mark_line
from frontend.html.tokens import HOT, chip, context_lines, escaped, example, opacity
from sae_engine.schema.features import Context, FeatureRow
from sae_engine.schema.playground import ReadToken, TextActivations

MAX_STRENGTH = 10.0
STRENGTH = 0.75
"""Of a feature just added. At 1 and above, the embedded model mostly repeats itself
(`benchmarks/steering_examples.py`).
"""


class Found(NamedTuple):
    """A feature of the text at one place in `tokens`."""

    feature: int
    activation: float
    place: int


def strengths_of(text: str) -> dict[int, float]:
    """Strengths of steered features from an address, such as `12:1.5,40:-2`; ignores the rest."""
    return dict(pair for part in text.split(",") if (pair := _strength(part)) is not None)


def wrong_strengths(text: str) -> str:
    """What `strengths_of` ignores, in one sentence; empty if that is nothing."""
    wrong = [part for part in text.split(",") if part and _strength(part) is None]
    if not wrong:
        return ""
    return (
        f"Left out of the steering: {', '.join(wrong)[:100]}. Write a feature's index and a "
        f"strength from -{MAX_STRENGTH:g} to {MAX_STRENGTH:g}, such as 12:1.5."
    )


def _strength(part: str) -> tuple[int, float] | None:
    index, _, strength = part.partition(":")
    try:
        value = float(strength)
    except ValueError:
        return None
    is_index = index.isascii() and index.isdecimal() and len(index) < 10
    return (int(index), value) if is_index and abs(value) <= MAX_STRENGTH else None


def strengths_text(strengths: Mapping[int, float]) -> str:
    """Strengths as an address holds them."""
    return ",".join(f"{index}:{strength:g}" for index, strength in strengths.items())


def token_chips(answer: TextActivations, *, chosen: int | None) -> str:
    """The text as one chip per token, the one at place `chosen` marked.

    Colored by the watched feature; without one by the sum of all activations, scaled from its
    smallest value because no token's sum is near 0.
    """
    if answer.features:
        values, smallest = answer.features[0].activations, 0.0
    else:
        values = [token.total for token in answer.tokens]
        smallest = min((t.total for t in answer.tokens if t.excluded is None), default=0.0)
    largest = max(values, default=0.0)
    chips = "".join(
        _chip(token, place, value, opacity(value - smallest, largest - smallest), place == chosen)
        for place, (token, value) in enumerate(zip(answer.tokens, values, strict=True))
    )
    return f'<div class="wb-tokens">{chips}</div>'


def _chip(token: ReadToken, place: int, value: float, strength: float, on: bool) -> str:
    text = escaped(token.text) or "·"
    if token.excluded:
        tip = f"{token.excluded}: excluded from SAE training, so it has no features"
        return f'<span class="wb-token out" title="{tip}">{text}</span>'
    css = "wb-token" + (" on" if on else "") + (" h" if strength > HOT else "")
    tip = number(value) if token.text else f"{number(value)}; part of a character"
    change = {"token": None if on else place}
    body = f'<b style="--o:{strength:.2f}">{text}</b>'
    end = "<br>" if "\n" in token.text else ""
    return set_link(body, change, css=css, tip=tip) + end


def features_of_token(token: ReadToken, place: int) -> list[Found]:
    """The features listed with a token."""
    return [Found(f.index, f.activation, place) for f in token.features]


def strongest_features(answer: TextActivations, limit: int) -> list[Found]:
    """The features with the largest activations in the text, each at its peak."""
    best: dict[int, Found] = {}
    for place, token in enumerate(answer.tokens):
        for found in features_of_token(token, place):
            if found.feature not in best or found.activation > best[found.feature].activation:
                best[found.feature] = found
    return sorted(best.values(), key=lambda found: -found.activation)[:limit]


def feature_table(
    found: Sequence[Found],
    answer: TextActivations,
    rows: Mapping[int, FeatureRow],
    *,
    run_id: str,
    snapshot: str | None,
    highlighted: int | None,
    strengths: Mapping[int, float],
    show_token: bool,
) -> str:
    """Features of a token or of the text, with links to highlight each and to steer with it."""
    largest = max((f.activation for f in found), default=0.0) or 1.0
    body = ""
    for index, activation, place in found:
        row = rows.get(index)
        name = feature_link(run_id, index, snapshot=snapshot, css="wb-index")
        token = f"<td>{chip(answer.tokens[place].text)}</td>" if show_token else ""
        marks = mark_line(answer.labels.get(index), starred=index in answer.starred)
        shown = ""
        if row is not None:
            snippet = example(row.example, reach=7)
            shown = feature_link(
                run_id, index, snapshot=snapshot, label_html=snippet, css="wb-example"
            )
        body += (
            f"<tr><td>{name}</td>{token}"
            f'<td class="num">{number(activation)}</td>'
            f'<td class="bar"><i style="width:{activation / largest:.0%}"></i></td>'
            f'<td class="what">{marks}'
            f"{shown}</td>"
            f"<td>{_highlight_link(index, on=index == highlighted)} "
            f"{_steer_link(index, strengths)}</td></tr>"
        )
    head = (
        f'<th>Feature</th>{"<th>Token</th>" if show_token else ""}<th class="num">Activation</th>'
        '<th></th><th class="wide">Strongest example</th><th></th>'
    )
    return table(head, body, css="probe")


def _highlight_link(index: int, *, on: bool) -> str:
    return set_link(
        "highlighted" if on else "highlight",
        {"lock": None if on else index},
        css="wb-act on" if on else "wb-act",
        tip="Color by all features again" if on else "Color the whole text by this feature",
    )


def _steer_link(index: int, strengths: Mapping[int, float]) -> str:
    on = index in strengths
    rest = {i: s for i, s in strengths.items() if i != index}
    return set_link(
        "steered" if on else "steer",
        {"steer": strengths_text(rest if on else {**strengths, index: STRENGTH}), "go": None},
        css="wb-act on" if on else "wb-act",
        tip="Stop steering with this feature" if on else "Add to the steering below",
    )


def token_title(token: ReadToken, place: int) -> str:
    """The heading of a token's features."""
    active = counted(token.num_active, "feature")
    return panel_title(f"{chip(token.text)} token {count(place)}: {active} active")


def colored_text(answer: TextActivations) -> str:
    """The text colored by the one watched feature, like a context and on the same scale."""
    of_text = (None, "outlier")
    ordinary = [place for place, token in enumerate(answer.tokens) if token.excluded in of_text]
    [watched] = answer.features
    values = [watched.activations[place] for place in ordinary]
    peak = max(range(len(values)), key=values.__getitem__)
    context = Context(
        tokens=[answer.tokens[place].text for place in ordinary],
        activations=values,
        activation=values[peak],
        peak=peak,
        position=peak,
        row=0,
        copies=1,
    )
    return context_lines([context], max(watched.max_activation, values[peak]), full=True)
