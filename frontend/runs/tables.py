"""Runs as CSV tables: settings that differ, metrics, curves."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sae_engine.schema.analysis import BestValue, Comparison
from sae_engine.schema.records import METRICS
from sae_engine.schema.runs import MetricsSeries, Run

FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r", "\N{FULLWIDTH EQUALS SIGN}")
NON_FINITE = ("-Infinity",)


def measured_names(runs: Iterable[Run]) -> list[str]:
    """Metrics that any of the runs has, in the order of `METRICS`."""
    names = {name for run in runs for name in run.metrics}
    return [name for name in METRICS if name in names]


def comparison_csv(found: Comparison) -> str:
    """The compared runs: settings that differ, last and best values of metrics."""
    settings = {difference.field: difference.values for difference in found.differences}
    return runs_csv(found.runs, settings, found.best)


def runs_csv(
    runs: Sequence[Run],
    settings: Mapping[str, Sequence[Any]],
    best: Sequence[Mapping[str, BestValue]] = (),
) -> str:
    """One row per run: settings that differ, last and, if given, best values of metrics."""
    names = measured_names(runs)
    best_names = [name for name in names if any(name in values for values in best)]
    head = ["id", "name", "status", *settings, *names]
    head += [f"best_{name}{suffix}" for suffix in ("", "_step") for name in best_names]
    rows: list[list[Any]] = []
    for place, run in enumerate(runs):
        bests = [best[place].get(name) for name in best_names]
        rows.append(
            [run.id, run.name, run.status]
            + [_cell(values[place]) for values in settings.values()]
            + [run.metrics.get(name) for name in names]
            + [value and value.value for value in bests]
            + [value and value.step for value in bests]
        )
    return _csv(head, rows)


def curves_csv(runs: Sequence[Run], curves: Sequence[MetricsSeries]) -> str:
    """One row per run and step; empty where a metric was not measured."""
    names = list(dict.fromkeys(name for data in curves for name in data.series))
    rows: list[list[Any]] = []
    for run, data in zip(runs, curves, strict=True):
        for at, step in enumerate(data.step):
            values = [data.series[name][at] if name in data.series else None for name in names]
            rows.append([run.id, run.name, step, data.tokens[at], data.time[at], *values])
    return _csv(["id", "name", "step", "tokens", "time", *names], rows)


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value)


def _csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_inert(value) for value in row] for row in rows)
    return text.getvalue()


def _inert(value: Any) -> Any:
    """The value; text that a spreadsheet would take for a formula begins with an apostrophe."""
    is_formula = isinstance(value, str) and value.lstrip().startswith(FORMULA_SIGNS)
    return f"'{value}" if is_formula and value not in NON_FINITE else value
