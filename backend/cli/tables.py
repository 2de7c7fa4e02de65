"""What the shell commands print: lists of runs, summaries, lookups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from backend import store
from backend.jobs.logs import plain
from backend.settings import Settings
from backend.store.database import open_database
from backend.store.models import RunRow
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.schema.lookup import LookupRank, LookupResult, TokenMatch
from sae_engine.schema.records import METRICS


def shown(text: str) -> str:
    """Text as rich prints it: without markup and without control characters."""
    return escape(plain(text))


SUMMARY_METRICS = (
    "eval_fvu",
    "eval_l0",
    "eval_cosine_similarity",
    "frac_alive",
    "ce_delta",
    "ce_loss_score",
    "fvu",
    "frac_dead",
)


SWEEP_METRICS = ("eval_fvu", "eval_l0", "frac_alive", "ce_delta")


def print_runs(settings: Settings, *, archived: bool, console: Console | None = None) -> None:
    """Print the newest runs of the data folder."""
    table = Table("id", "name", "status", "step", "FVU", "created", box=None)
    with (
        open_database(settings.resolved_database_url) as database,
        database.reading() as session,
    ):
        wanted = store.RunFilter(archived=None if archived else False)
        for row in store.list_runs(session, wanted, limit=200).rows:
            latest = row.latest_metrics
            fvu = latest.get("eval_fvu", latest.get("fvu"))
            steps = f"{row.step:,}" + (f" / {row.total_steps:,}" if row.total_steps else "")
            created = f"{row.created_at.astimezone():%Y-%m-%d %H:%M}"
            figure = "" if fvu is None else f"{fvu:.4f}"
            table.add_row(row.id, shown(row.name), row.status, steps, figure, created)
    (console or Console()).print(table if table.row_count else "No runs yet.")


def print_lookup(
    settings: Settings,
    run: str,
    text: str,
    *,
    match: TokenMatch,
    exact_case: bool,
    rank: LookupRank,
    min_count: int,
    limit: int,
    snapshot: int | None,
    console: Console | None = None,
) -> None:
    """Print the features related to `text`.

    Raises `UserError` or `ApiError` for an unknown run, snapshot, or a run without features.
    """
    with (
        open_database(settings.resolved_database_url) as database,
        database.reading() as session,
    ):
        row = store.find_run(session, run)
        step = store.resolve_snapshot(session, row, snapshot)
        labels = store.labels(session, row.id)
    folder = settings.run_folder(row.id).feature_index(step)
    result = FeatureIndex.open(folder).lookup(
        text,
        match=match,
        exact_case=exact_case,
        rank=rank,
        min_count=min_count,
        limit=limit,
        labels=labels,
    )
    console = console or Console()
    tokens = "  ".join(f"{t.text!r} x {t.count:,}" for t in result.tokens)
    if result.phrase and result.occurrences:
        times = "once" if result.occurrences == 1 else f"{result.occurrences:,} times"
        verb = "matches" if match == "regex" else "stands"
        tokens = f"{text!r} {verb} {times} in the text, ending in {tokens}"
    console.print(f"Step {result.snapshot}: {shown(tokens)}", highlight=False)
    console.print(_lookup_table(result) if result.features else result.message or "Nothing found.")


def _lookup_table(result: LookupResult) -> Table:
    table = Table(box=None)
    for column in ("feature", "f1", "precision", "recall", "lift", "max", "count"):
        table.add_column(column, justify="right", no_wrap=True, min_width=max(5, len(column)))
    for column in ("label", "example"):
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    for feature in result.features:
        example = feature.example
        table.add_row(
            str(feature.index),
            f"{feature.f1:.3f}",
            f"{feature.precision:.3f}",
            f"{feature.recall:.3f}",
            f"{feature.lift:.1f}",
            f"{feature.max_activation:.2f}",
            f"{feature.count:,}",
            shown(feature.label or ""),
            shown("".join(example.tokens).replace("\n", "↵")) if example else "",
        )
    return table


def summary_table(row: RunRow) -> Table:
    """A finished run's status, duration and latest metrics."""
    table = Table(box=None, show_header=False)
    table.add_row("status", row.status)
    table.add_row("steps", f"{row.step:,}")
    table.add_row("tokens", f"{row.tokens:,}")
    if row.started_at and row.ended_at:
        table.add_row("time", _duration(row.started_at, row.ended_at))
    latest = row.latest_metrics
    for name in SUMMARY_METRICS:
        if name in latest:
            metric = METRICS[name]
            table.add_row(metric.title, f"{_figure(name, latest[name])} {metric.unit}".rstrip())
    return table


def sweep_table(rows: Sequence[RunRow]) -> Table:
    """Status and latest metrics of a sweep's runs, one per line."""
    table = Table("id", "name", "status", box=None)
    for name in SWEEP_METRICS:
        table.add_column(METRICS[name].title, justify="right")
    for row in rows:
        latest = row.latest_metrics
        figures = [_figure(name, latest[name]) if name in latest else "" for name in SWEEP_METRICS]
        table.add_row(row.id, shown(row.name), row.status, *figures)
    return table


def _figure(metric: str, value: float) -> str:
    if math.isnan(value) and METRICS[metric].may_be_undefined:
        return "not defined"
    return f"{value:.4f}"


def _duration(start: datetime, end: datetime) -> str:
    seconds = round((end - start).total_seconds())
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
