"""What a snapshot knows about one feature, as HTML: counts, tokens, neighbors, logits, contexts."""

from __future__ import annotations

from collections.abc import Sequence

from frontend.html.blocks import explanation, feature_link, numeric_cells, panel_title, table
from frontend.html.format import count, density, number, percent
from frontend.html.marks import mark
from frontend.html.tokens import chip, chips, context_lines, largest_activation, logit_column
from sae_engine.schema.analysis import MATCH_THRESHOLD
from sae_engine.schema.features import (
    FeatureDetail,
    FeatureHistory,
    Interval,
    Logits,
    Neighbour,
    TokenStatistics,
)

TOP_TOKENS = 10
NEIGHBORS = 10
LOGITS = 8
NEIGHBOR_TOKENS = 3
ABOUT_COSINES = f"""\
The cosine compares the directions that two features add to the model: 1 is the same direction, \
-1 the opposite one.
0.9 or more: near-duplicates.
{MATCH_THRESHOLD} or more: Compare counts features of two SAEs as the same.
0.3: related but distinct.
Near 0: unrelated. Random directions of width d have cosines of about ±1/√d: ±0.02 for 2,304."""
_TOKEN_COLUMNS = (
    ("Fires", "Occurrences of this token on which the feature fires"),
    ("Precision", "Share of the feature's firings that are on this token"),
    ("Recall", "Share of this token's occurrences on which the feature fires"),
    ("Lift", "Precision divided by the token's overall frequency"),
)


def facts(feature: FeatureDetail) -> str:
    """Density and largest activation."""
    return (
        f'<dl class="wb-facts"><dt>Density</dt><dd>{density(feature.density)}</dd>'
        f"<dt>Max activation</dt><dd>{number(feature.max_activation)}</dd></dl>"
    )


def top_tokens(tokens: Sequence[TokenStatistics]) -> str:
    """The tokens on which the feature fires most; empty without any."""
    if not tokens:
        return ""
    head = "".join(f'<th class="num" title="{tip}">{name}</th>' for name, tip in _TOKEN_COLUMNS)
    rows = "".join(_top_token(token) for token in tokens[:TOP_TOKENS])
    return panel_title("Top tokens") + table(f"<th>Token</th>{head}", rows, css="small")


def _top_token(token: TokenStatistics) -> str:
    cells = (
        count(token.count),
        percent(token.precision),
        percent(token.recall),
        number(token.lift),
    )
    return f"<tr><td>{chip(token.text)}</td>{numeric_cells(cells)}</tr>"


def nearest_features(run_id: str, neighbors: Sequence[Neighbour], snapshot: str | None) -> str:
    """Features with similar decoder rows, as links."""
    rows = "".join(
        f"<li>{feature_link(run_id, near.index, snapshot=snapshot, css='')}"
        f"<span>{mark(near.label, starred=near.starred)} {_tokens(run_id, near, snapshot)}</span>"
        f'<span class="num">{near.cosine:+.2f}</span></li>'
        for near in neighbors[:NEIGHBORS]
    )
    title = panel_title("Nearest features <small>by cosine of decoder rows</small>")
    about = explanation("What do 0.3 and 0.9 mean?", ABOUT_COSINES)
    return f'{title}{about}<ul class="wb-neighbours">{rows}</ul>'


def _tokens(run_id: str, near: Neighbour, snapshot: str | None) -> str:
    if not near.top_tokens:
        return ""
    shown = chips(near.top_tokens[:NEIGHBOR_TOKENS])
    return feature_link(run_id, near.index, snapshot=snapshot, label_html=shown, css="")


def history_title(history: FeatureHistory) -> str:
    """The title of the history, with the steps at which the feature began and stopped firing."""
    events = [
        f"{what} at step {count(step)}"
        for what, step in (("born", history.born_step), ("died", history.died_step))
        if step is not None
    ]
    if history.missing_steps:
        lost = ", ".join(map(count, history.missing_steps))
        events.append(f"files of the snapshots at {lost} are lost or damaged")
    note = f" <small>({', '.join(events)})</small>" if events else ""
    tip = "Density, and cosine between the decoder row and its latest version, in every snapshot"
    return panel_title(f"During training{note}", tip=tip)


def logit_columns(logits: Logits) -> str:
    """The tokens whose logits the feature lowers and raises most."""
    columns = (
        ("Negative logits", logit_column(logits.negative[:LOGITS], sign="negative")),
        ("Positive logits", logit_column(logits.positive[:LOGITS], sign="positive")),
    )
    body = "".join(f"<div>{panel_title(title)}{column}</div>" for title, column in columns)
    return f'<div class="wb-two">{body}</div>'


def all_contexts(feature: FeatureDetail, *, full: bool) -> str:
    """The strongest contexts, then those of each interval, colored on one scale."""
    groups = [feature.contexts, *(interval.contexts for interval in feature.intervals)]
    largest = largest_activation(context for group in groups for context in group)
    return context_lines(feature.contexts, largest, full=full) + "".join(
        _interval_title(interval) + context_lines(interval.contexts, largest, full=full)
        for interval in feature.intervals
        if interval.contexts
    )


def _interval_title(interval: Interval) -> str:
    return (
        f'<h3 class="wb-section">Activation {interval.low:.2f}–{interval.high:.2f} '
        f"<small>({percent(interval.share)} of firings)</small></h3>"
    )
