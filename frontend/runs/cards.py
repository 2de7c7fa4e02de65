"""The figures a run is judged by, as cards with a sparkline: pure functions to HTML."""

from __future__ import annotations

import html
from statistics import fmean
from typing import NamedTuple

from frontend.charts.curves import finite_values, sparkline
from frontend.html.format import DASH, count, duration, elapsed, number, percent, short_count
from sae_engine.schema.records import METRICS
from sae_engine.schema.runs import MetricsSeries, MetricValue, Run


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


def change(values: list[MetricValue]) -> float | None:
    """Relative change of the mean over the last tenth of a curve against the tenth before it."""
    finite = finite_values(values)
    tenth = len(finite) // 10
    if tenth == 0:
        return None
    before = fmean(finite[-2 * tenth : -tenth])
    return (fmean(finite[-tenth:]) - before) / abs(before) if before else None


def _card(card: Card, run: Run, data: MetricsSeries) -> str:
    metric = METRICS[card.metric]
    value = run.metrics.get(card.metric)
    text = percent(value) if card.share else number(value)
    series = data.series.get(card.metric, [])
    broken = " broken" if value is not None and not finite_values([value]) else ""
    return (
        f'<div class="wb-card{broken}" title="{html.escape(metric.help, quote=True)}">'
        f'<span class="t">{html.escape(metric.title)}</span>'
        f'<span class="v">{text}{_change_text(card, series)}</span>'
        f"{sparkline(series)}</div>"
    )


def _change_text(card: Card, series: list[MetricValue]) -> str:
    moved = change(series)
    if moved is None or abs(moved) < 5e-4:
        return ""
    good = {"lower": moved < 0, "higher": moved > 0}.get(METRICS[card.metric].better)
    tone = "" if good is None else " good" if good else " bad"
    note = "The last tenth of the curve against the tenth before it"
    arrow = "▾" if moved < 0 else "▴"
    return f'<small class="d{tone}" title="{note}">{arrow} {abs(moved):.1%}</small>'


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
    """Share of the steps that are done; None while it is unknown or the run still prepares."""
    if run.status == "finished":
        return 1.0
    at = run.progress
    if run.status == "queued" and not at.total_steps:
        return 0.0
    preparing = run.status == "running" and at.step == 0
    return at.step / at.total_steps if at.total_steps and not preparing else None


def metric_text(run: Run, name: str) -> str:
    """The latest value of a metric for a table cell."""
    value = run.metrics.get(name)
    return DASH if value is None else number(value)
