"""The most important metrics of a run as cards with sparklines, and its progress, as HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from statistics import fmean

from frontend.charts.series import finite_values
from frontend.html.format import count, duration, elapsed, metric_text, short_count
from frontend.runs.devices import is_of_cluster
from sae_engine.schema.records import METRICS
from sae_engine.schema.runs import MetricsSeries, MetricValue, Run

CARDS = ("fvu", "eval_fvu", "l0", "frac_dead", "ce_loss_score", "ce_delta", "tokens_per_second")
"""The metrics that have a card."""
IMPORTED_CARDS = ("eval_fvu", "eval_l0", "frac_alive", "ce_loss_score", "ce_delta")
"""Those of an imported SAE, which is only evaluated."""


def cards(run: Run, data: MetricsSeries) -> str:
    """A row of cards with the latest values of metrics."""
    names = CARDS if run.config.sae.pretrained is None else IMPORTED_CARDS
    return f'<div class="wb-cards">{"".join(_card(name, run, data) for name in names)}</div>'


def change(values: list[MetricValue]) -> float | None:
    """Relative change of the mean over the last tenth of a curve against the tenth before it."""
    finite = finite_values(values)
    tenth = len(finite) // 10
    if tenth == 0:
        return None
    before = fmean(finite[-2 * tenth : -tenth])
    return (fmean(finite[-tenth:]) - before) / abs(before) if before else None


def _card(name: str, run: Run, data: MetricsSeries) -> str:
    metric, value, series = METRICS[name], run.metrics.get(name), data.series.get(name, [])
    undefined = value is None or (value == "NaN" and metric.may_be_undefined)
    broken = " broken" if not undefined and not finite_values([value]) else ""
    return (
        f'<div class="wb-card{broken}" title="{html.escape(metric.help, quote=True)}">'
        f'<span class="t">{html.escape(metric.title)}</span>'
        f'<span class="v">{metric_text(name, value)}{_change_text(name, series)}</span>'
        f"{sparkline(series)}</div>"
    )


def _change_text(name: str, series: list[MetricValue]) -> str:
    moved = change(series)
    if moved is None or abs(moved) < 5e-4:
        return ""
    good = {"lower": moved < 0, "higher": moved > 0}.get(METRICS[name].better)
    tone = "" if good is None else " good" if good else " bad"
    tip = "The last tenth of the curve compared with the tenth before it"
    arrow = "▾" if moved < 0 else "▴"
    return f'<small class="d{tone}" title="{tip}">{arrow} {abs(moved):.1%}</small>'


def progress_line(run: Run) -> str:
    """`step / total · tokens · elapsed · remaining · phase · device`, leaving out what is unknown,
    and the device if it is this machine's.
    """
    at = run.progress
    begun = at.step > 0 or at.total_steps is not None
    steps = f"step {count(at.step)}" + (f" / {count(at.total_steps)}" if at.total_steps else "")
    tokens = f"{short_count(at.tokens)} tokens"
    if not begun:
        steps = tokens = ""
    elif run.config.sae.pretrained is not None:
        steps, tokens = "imported", ""
    took = elapsed(run.started_at, run.ended_at)
    spent = f"{duration(took)} elapsed" if took is not None else ""
    known = run.status == "running" and at.eta_seconds is not None and at.eta_seconds >= 1
    left = f"about {duration(at.eta_seconds)} left" if known else ""
    phase = at.phase if run.status in ("queued", "running", "stopping") and at.phase else ""
    where = f"on {run.device}" if phase and is_of_cluster(run.device) else ""
    return " · ".join(part for part in (steps, tokens, spent, left, phase, where) if part)


def fraction_done(run: Run) -> float | None:
    """Share of the steps that are done; None if it is unknown and the run is working."""
    if run.status == "finished":
        return 1.0
    at = run.progress
    if run.status not in ("running", "stopping") and not at.total_steps:
        return 0.0
    preparing = run.status == "running" and at.step == 0
    return at.step / at.total_steps if at.total_steps and not preparing else None


def sparkline(values: Sequence[MetricValue], *, width: int = 120, height: int = 28) -> str:
    """A tiny curve of about 60 points as inline SVG; empty with fewer than two finite values."""
    finite = finite_values(values)
    head = f'<svg class="wb-spark" viewBox="0 0 {width} {height}" preserveAspectRatio="none">'
    if len(finite) < 2:
        return f"{head}</svg>"
    stride = max(1, len(finite) // 60)
    points = finite[(len(finite) - 1) % stride :: stride]
    low, high = min(points), max(points)
    across = width / max(1, len(points) - 1)
    span = high / 2 - low / 2 or 1.0  # halved because the whole span may overflow a float
    path = " ".join(
        f"{i * across:.1f},{height - 2 - (height - 4) * ((value / 2 - low / 2) / span):.1f}"
        for i, value in enumerate(points)
    )
    return f'{head}<polyline points="{path}"/></svg>'
