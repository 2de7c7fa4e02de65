"""A read text as HTML: tokens as chips, a token's features, a text in the look of contexts.

Pure functions; the classes they use are defined in `style.css`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from frontend.html.blocks import link, set_link
from frontend.html.format import count, number
from frontend.html.tokens import chip, context_lines, escaped, example, opacity
from sae_engine.schema.features import Context, FeatureRow
from sae_engine.schema.playground import ReadToken, TextActivations

MAX_STRENGTH = 10.0
HOT = 0.75


class Found(NamedTuple):
    """A feature of the text, and where it is meant: at its place in `tokens`."""

    feature: int
    activation: float
    place: int


def strengths_of(text: str) -> dict[int, float]:
    """What an address says about steered features, such as `12:1.5,40:-2`; the rest is ignored."""
    found: dict[int, float] = {}
    for part in text.split(","):
        index, _, strength = part.partition(":")
        try:
            value = float(strength)
        except ValueError:
            continue
        if index.isdecimal() and abs(value) <= MAX_STRENGTH:
            found[int(index)] = value
    return found


def strengths_text(strengths: Mapping[int, float]) -> str:
    return ",".join(f"{index}:{strength:g}" for index, strength in strengths.items())


def token_chips(answer: TextActivations, *, chosen: int | None) -> str:
    """The text, a chip per token, the one at place `chosen` marked.

    Colored by the feature that was asked for; without one by the sum of all activations, from the
    smallest on, as no token's is near 0.
    """
    if answer.features:
        values, smallest = answer.features[0].activations, 0.0
    else:
        values = [token.total for token in answer.tokens]
        smallest = min((t.total for t in answer.tokens if t.excluded is None), default=0.0)
    largest = max(values, default=0.0)
    chips = "".join(
        _chip(
            token,
            place,
            value,
            opacity(value - smallest, largest - smallest),
            on=place == chosen,
        )
        for place, (token, value) in enumerate(zip(answer.tokens, values, strict=True))
    )
    return f'<div class="wb-tokens">{chips}</div>'


def _chip(token: ReadToken, place: int, value: float, strength: float, *, on: bool) -> str:
    text = escaped(token.text) or "·"
    if token.excluded:
        note = f"{token.excluded}: a position that no SAE is trained on, so it has no features"
        return f'<span class="wb-token out" title="{note}">{text}</span>'
    css = "wb-token" + (" on" if on else "") + (" h" if strength > HOT else "")
    note = f"{number(value)}" if token.text else f"{number(value)}; a part of a character"
    change = {"token": None if on else place}
    body = f'<b style="--o:{strength:.2f}">{text}</b>'
    end = "<br>" if "\n" in token.text else ""
    return set_link(body, change, css=css, note=note) + end


def features_of_token(token: ReadToken, place: int) -> list[Found]:
    return [Found(f.index, f.activation, place) for f in token.features]


def strongest_features(answer: TextActivations, limit: int) -> list[Found]:
    """The features that are most active anywhere in the text, each where it is."""
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
    locked: int | None,
    strengths: Mapping[int, float],
    show_token: bool,
) -> str:
    """Features of a token or of the text, with what is known about them and what to do with
    them.
    """
    widest = max((f.activation for f in found), default=0.0) or 1.0
    body = ""
    for index, activation, place in found:
        query = {"id": run_id, "index": index, "snapshot": snapshot}
        row = rows.get(index)
        label = answer.labels.get(index, "")
        token = f"<td>{chip(answer.tokens[place].text)}</td>" if show_token else ""
        lock = set_link(
            "unlock" if index == locked else "lock",
            {"lock": None if index == locked else index},
            css="wb-act on" if index == locked else "wb-act",
            note="Color the whole text by this feature",
        )
        steered = index in strengths
        rest = {i: s for i, s in strengths.items() if i != index}
        steering = set_link(
            "steered" if steered else "steer",
            {
                "steer": strengths_text(rest if steered else {**strengths, index: 1.0}),
                "go": None,
            },
            css="wb-act on" if steered else "wb-act",
            note="Stop steering with it" if steered else "Add it to the steering below",
        )
        body += (
            f"<tr><td>{link('feature', str(index), query, css='wb-index')}</td>{token}"
            f'<td class="num">{number(activation)}</td>'
            f'<td class="bar"><i style="width:{activation / widest:.0%}"></i></td>'
            f'<td class="what"><span class="wb-sub">{escaped(label)}</span>'
            f"{example(row.example, reach=7) if row else ''}</td>"
            f"<td>{lock} {steering}</td></tr>"
        )
    head = "<th>Feature</th>" + ("<th>On</th>" if show_token else "")
    return (
        f'<table class="wb-table probe"><thead><tr>{head}<th class="num">Value</th><th></th>'
        '<th class="wide">Strongest example</th><th></th></tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def token_title(token: ReadToken, place: int) -> str:
    return (
        f'<h3 class="wb-panel">{chip(token.text)} token {count(place)}: '
        f"{count(token.num_active)} features active</h3>"
    )


def own_text_line(answer: TextActivations) -> str:
    """The text colored by the one feature that was asked for, in the look of contexts and on their
    scale.
    """
    ordinary = [place for place, token in enumerate(answer.tokens) if token.excluded is None]
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
