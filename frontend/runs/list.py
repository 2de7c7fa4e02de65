"""The list of runs as HTML: one row per run, and a heading above the runs of a sweep."""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from frontend.html.blocks import (
    badge,
    link,
    progress_bar,
    set_link,
    sweep_link,
    table,
    tag_chips,
    toggle_link,
)
from frontend.html.format import (
    DASH,
    age,
    duration,
    elapsed,
    metric_text,
    ordinal,
    percent,
    short_count,
    width_text,
)
from frontend.html.tokens import escaped
from frontend.runs.alerts import alert_count
from frontend.runs.cards import fraction_done
from sae_engine.schema.config import SAEConfig
from sae_engine.schema.features import SortOrder
from sae_engine.schema.records import METRICS
from sae_engine.schema.runs import Run, RunSort


class Column(NamedTuple):
    """A column of the list: its title, its help, and what it is sorted by."""

    title: str
    help: str
    sort: RunSort | None = None
    number: bool = True


COLUMNS = (
    Column("Run", "Name, language model and hook point", "name", number=False),
    Column("Status", "Current status", "status", number=False),
    Column("Progress", "Share of the steps that are done", number=False),
    Column("Latents", "Number of latents, and how many are active per token"),
    Column("FVU", "Fraction of variance unexplained, on held-out text once evaluated", "fvu"),
    Column("L0", "Mean number of active latents per token", "l0"),
    Column(METRICS["ce_delta"].title, METRICS["ce_delta"].help, "ce_delta"),
    Column("Tokens/s", "Training tokens per second"),
    Column("Duration", "Time since the start"),
    Column("Created", "When the run was created", "created"),
)


def first_order(sort: RunSort) -> SortOrder:
    """The order of a list unless another is chosen: newest first, else lowest first."""
    return "desc" if sort == "created" else "asc"


def runs_table(
    runs: Sequence[Run], *, sort: RunSort, order: SortOrder, picked: Collection[str]
) -> str:
    """The table; sorted by creation, which keeps sweeps together, it has a heading for each."""
    head = "".join(_heading(column, sort, order) for column in COLUMNS)
    rows: list[str] = []
    group = None
    for run in runs:
        if sort == "created" and run.group_id not in (None, group):
            rows.append(_sweep_row(run))
        group = run.group_id
        rows.append(_row(run, picked))
    return table(f"<th></th>{head}", "".join(rows), css="runs")


def _heading(column: Column, sort: RunSort, order: SortOrder) -> str:
    css = ' class="num"' if column.number else ""
    tip = html.escape(column.help, quote=True)
    if column.sort is None:
        return f'<th{css} title="{tip}">{column.title}</th>'
    on = column.sort == sort
    turned: SortOrder = "asc" if order == "desc" else "desc"
    wanted = turned if on else first_order(column.sort)
    change = {
        "sort": None if column.sort == "created" else column.sort,
        "order": None if wanted == first_order(column.sort) else wanted,
        "cursor": None,
    }
    arrow = (" ↓" if order == "desc" else " ↑") if on else ""
    shown = set_link(f"{column.title}{arrow}", change, css="on" if on else "", tip=column.help)
    return f"<th{css}>{shown}</th>"


def _sweep_row(run: Run) -> str:
    name = link("sweep", escaped(sweep_name(run)), {"id": run.group_id}, css="wb-sweepname")
    return f'<tr class="group"><td></td><td colspan="{len(COLUMNS)}">Sweep {name}</td></tr>'


def sweep_name(member: Run) -> str:
    """The name of a sweep: a member's name without the values that tell the members apart."""
    return re.sub(r"( [\w.]+=\S+)+$", "", member.name) or member.name


def _row(run: Run, picked: Collection[str]) -> str:
    fraction = fraction_done(run)
    share = percent(fraction) if fraction is not None else ""
    place = f"{ordinal(run.queue_position)} in queue" if run.queue_position is not None else ""
    speed = run.metrics.get("tokens_per_second")
    fvu = "eval_fvu" if "eval_fvu" in run.metrics else "fvu"
    l0 = "eval_l0" if "eval_l0" in run.metrics else "l0"
    name = link("run", f"<strong>{escaped(run.name)}</strong>", {"id": run.id}, css="wb-name")
    where = f"{escaped(run.config.model.name)} · {escaped(run.config.hook_name)}{sweep_link(run)}"
    cells = (
        f'{name}<span class="wb-sub">{where} {tag_chips(run)}</span>',
        f"{badge(run.status)} {alert_count(run)}",
        f'{progress_bar(fraction, css=run.status)}<span class="wb-sub">{place or share}</span>',
        _latents(run.config.sae),
        metric_text(fvu, run.metrics.get(fvu)),
        metric_text(l0, run.metrics.get(l0)),
        metric_text("ce_delta", run.metrics.get("ce_delta")),
        short_count(speed) if isinstance(speed, float) else DASH,
        duration(elapsed(run.started_at, run.ended_at)),
        age(run.created_at),
    )
    drawn = "".join(
        f'<td class="num">{cell}</td>' if column.number else f"<td>{cell}</td>"
        for column, cell in zip(COLUMNS, cells, strict=True)
    )
    css = ' class="picked"' if run.id in picked else ""
    return f'<tr{css}><td class="wb-checkcell">{_check(run, picked)}</td>{drawn}</tr>'


def _check(run: Run, picked: Collection[str]) -> str:
    """A box that selects a run, or deselects it."""
    return toggle_link("pick", run.id, on=run.id in picked, tip=f"Select {run.name}")


def _latents(sae: SAEConfig) -> str:
    if sae.pretrained is not None:
        return "<small>imported</small>"
    return f"{width_text(sae)}, k {sae.k}"
