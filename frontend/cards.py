"""The figures a run is judged by, as cards with a sparkline: pure functions to HTML."""

from __future__ import annotations

import html
import math
from typing import NamedTuple

from frontend.charts import sparkline
from frontend.words import DASH, count, duration, elapsed, number, percent, short_count
from sae_engine.schema.api import MetricsSeries, MetricValue, Run
from sae_engine.schema.records import METRICS


class Card(NamedTuple):
    """One figure: the metric, and whether it is a share."""

    metric: str
    share: bool = False


CARDS: tuple[Card, ...] = (
    Card("fvu"),
    Card("eval_fvu"),
    Card("l0"),
    Card("frac_dead", share=True),
    Card("ce_delta"),
    Card("tokens_per_second"),
)


def cards(run: Run, data: MetricsSeries) -> str:
    """A row of cards with the latest values."""
    return f'<div class="wb-cards">{"".join(_card(card, run, data) for card in CARDS)}</div>'


def delta(values: list[MetricValue]) -> float | None:
    """Relative change of the latest value against the one a tenth of the curve before it."""
    finite = [
        float(v) for v in values if v is not None and not isinstance(v, str) and math.isfinite(v)
    ]
    if len(finite) < 2:
        return None
    before = finite[-1 - max(1, len(finite) // 10)]
    return (finite[-1] - before) / abs(before) if before else None


def _card(card: Card, run: Run, data: MetricsSeries) -> str:
    metric = METRICS[card.metric]
    value = run.metrics.get(card.metric)
    text = percent(value) if card.share else number(value)
    series = data.series.get(card.metric, [])
    broken = isinstance(value, str) or (value is not None and not math.isfinite(value))
    return (
        f'<div class="wb-card{" broken" if broken else ""}" title="{html.escape(metric.help, quote=True)}">'
        f'<span class="t">{html.escape(metric.title)}</span>'
        f'<span class="v">{text}<small>{_delta_text(card, series)}</small></span>'
        f"{sparkline(series)}</div>"
    )


def _delta_text(card: Card, series: list[MetricValue]) -> str:
    change = delta(series)
    if change is None or abs(change) < 5e-4:
        return ""
    better = METRICS[card.metric].better
    good = {"lower": change < 0, "higher": change > 0}.get(better)
    tone = "" if good is None else " good" if good else " bad"
    arrow = "▾" if change < 0 else "▴"
    return f'<span class="d{tone}">{arrow} {abs(change):.1%}</span>'


def progress_line(run: Run) -> str:
    """`step / total · tokens · elapsed < remaining · phase`, as far as each is known."""
    at = run.progress
    steps = f"step {count(at.step)}" + (f" / {count(at.total_steps)}" if at.total_steps else "")
    tokens = f"{short_count(at.tokens)} tokens"
    took = elapsed(run.started_at, run.ended_at)
    spent = f"{duration(took)} elapsed" if took is not None else ""
    if run.status == "running" and at.eta_seconds is not None:
        spent += f" < {duration(at.eta_seconds)} left"
    phase = at.phase if run.status in ("queued", "running", "stopping") and at.phase else ""
    return " · ".join(part for part in (steps, tokens, spent, phase) if part)


def fraction_done(run: Run) -> float | None:
    """Share of the steps that are done; None while the total is unknown."""
    if run.status == "finished":
        return 1.0
    return run.progress.step / run.progress.total_steps if run.progress.total_steps else None


def metric_text(run: Run, name: str) -> str:
    """The latest value of a metric for a table cell."""
    value = run.metrics.get(name)
    return DASH if value is None else number(value)
