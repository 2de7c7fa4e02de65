"""The columns of the list of runs: the usual ones, and any setting or metric the reader adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from frontend.html.blocks import badge, progress_bar
from frontend.html.format import (
    DASH,
    age,
    counted,
    duration,
    elapsed,
    metric_text,
    percent,
    queue_place,
    short_count,
    width_text,
)
from frontend.html.tokens import escaped
from frontend.runs.alerts import alert_count
from frontend.runs.cards import fraction_done
from frontend.runs.setting_text import setting_text
from sae_engine.schema.fields import field_specs
from sae_engine.schema.records import METRICS
from sae_engine.schema.runs import Run, RunSort


class Column(NamedTuple):
    """A column of the list: its title, its help, its content as HTML, and its sorting."""

    title: str
    help: str
    cell: Callable[[Run], str]
    sort: RunSort | None = None
    number: bool = True


def _status(run: Run) -> str:
    return f"{badge(run.status)} {alert_count(run)}"


def _duration(run: Run) -> str:
    return duration(elapsed(run.started_at, run.ended_at))


def _created(run: Run) -> str:
    return age(run.created_at)


def _progress(run: Run) -> str:
    fraction = fraction_done(run)
    share = percent(fraction) if fraction is not None else ""
    place = "" if run.queue_position is None else queue_place(run.queue_position)
    bar = progress_bar(fraction, css=run.status)
    return f'{bar}<span class="wb-sub">{place or share}</span>'


def _latents(run: Run) -> str:
    sae = run.config.sae
    if sae.pretrained is not None:
        return "<small>imported</small>"
    width = counted(run.d_sae, "latent") if run.d_sae else width_text(sae)
    return f"{width}, k {sae.k}"


def _speed(run: Run) -> str:
    speed = run.metrics.get("tokens_per_second")
    return short_count(speed) if isinstance(speed, float) else DASH


def _latest(metric: str) -> Callable[[Run], str]:
    def cell(run: Run) -> str:
        return metric_text(metric, run.metrics.get(metric))

    return cell


def _held_out_first(metric: str) -> Callable[[Run], str]:
    def cell(run: Run) -> str:
        if f"eval_{metric}" in run.metrics or metric not in run.metrics:
            return metric_text(f"eval_{metric}", run.metrics.get(f"eval_{metric}"))
        text = metric_text(metric, run.metrics[metric])
        return (
            f'<span class="wb-muted" title="Of a training batch; not evaluated yet">{text}</span>'
        )

    return cell


USUAL = {
    "status": Column(
        "Status",
        "Current status",
        _status,
        "status",
        number=False,
    ),
    "progress": Column("Progress", "Share of the steps that are done", _progress, number=False),
    "latents": Column("Latents", "Number of latents, and how many are active per token", _latents),
    "fvu": Column(
        "FVU",
        "Fraction of variance unexplained on held-out text; gray: on a training batch, so far",
        _held_out_first("fvu"),
        "fvu",
    ),
    "l0": Column("L0", "Mean number of active latents per token", _held_out_first("l0"), "l0"),
    "ce_delta": Column(
        METRICS["ce_delta"].title,
        METRICS["ce_delta"].help,
        _latest("ce_delta"),
        "ce_delta",
    ),
    "speed": Column("Tokens/s", "Training tokens per second", _speed),
    "duration": Column("Duration", "Time since the start", _duration),
    "created": Column("Created", "When the run was created", _created, "created"),
}
"""By name in the URL."""


def offered() -> dict[str, str]:
    """The names of all columns, each with its title: the usual ones, metrics, settings."""
    names = {name: column.title for name, column in USUAL.items()}
    names |= {name: f"{METRICS[name].title} ({name})" for name in METRICS if name not in USUAL}
    return names | {path: path for path in field_specs() if path != "name"}


def columns_of(names: Sequence[str]) -> list[Column]:
    """The columns with these names; unknown names are left out."""
    found = [USUAL.get(name) or _metric(name) or _setting(name) for name in names]
    return [column for column in found if column is not None]


def _metric(name: str) -> Column | None:
    metric = METRICS.get(name)
    if metric is None:
        return None
    return Column(metric.title, metric.help, _latest(name))


def _setting(path: str) -> Column | None:
    spec = field_specs().get(path)
    if spec is None:
        return None

    def cell(run: Run) -> str:
        return escaped(setting_text(run, path))

    is_number = spec.kind in ("int", "float")
    return Column(f"<code>{path}</code>", spec.help, cell, number=is_number)
