"""The list of runs as HTML: one row per run, and headings above those that belong together."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Collection, Mapping, Sequence

from frontend.charts.pareto import held_out
from frontend.html.blocks import link, set_link, sweep_link, table, tag_chips, toggle_link
from frontend.html.format import counted, number
from frontend.html.tokens import escaped
from frontend.runs.columns import Column
from frontend.runs.setting_text import setting_text
from sae_engine.schema.features import SortOrder
from sae_engine.schema.runs import Run, RunSort


def _name(run: Run) -> str:
    name = link("run", f"<strong>{escaped(run.name)}</strong>", {"id": run.id}, css="wb-name")
    where = f"{escaped(run.config.model.name)} · {escaped(run.config.hook_name)}{sweep_link(run)}"
    return f'{name}<span class="wb-sub">{where} {tag_chips(run)}</span>'


NAME = Column("Run", "Name, language model and hook point", _name, "name", number=False)

GROUPS: Mapping[str, Callable[[Run], str]] = {
    "model": lambda run: run.config.model.name,
    "hook": lambda run: f"{run.config.model.name} · {run.config.hook_name}",
    "text": lambda run: run.config.data.title,
    "latents": lambda run: f"{run.d_sae or 'any number of'} latents",
    "k": lambda run: f"k {setting_text(run, 'sae.k')}",
    "status": lambda run: run.status,
    "tags": lambda run: ", ".join(run.tags) or "no tag",
}
"""What runs can be grouped by, besides their sweeps."""


def first_order(sort: RunSort) -> SortOrder:
    """The order of a list unless another is chosen: newest first, else lowest first."""
    return "desc" if sort == "created" else "asc"


def runs_table(
    runs: Sequence[Run],
    columns: Sequence[Column],
    *,
    sort: RunSort,
    order: SortOrder,
    picked: Collection[str],
    group: str | None = None,
) -> str:
    """The table, with a heading above each group; sorted by creation, which keeps sweeps together,
    above each sweep.
    """
    heads = "".join(_heading(column, sort, order) for column in (NAME, *columns))
    head = f'<th class="wb-checkcell">{_check_all(runs, picked)}</th>{heads}'
    width = len(columns) + 1
    if group is None:
        rows = _with_sweeps(runs, columns, picked, shows_sweeps=sort == "created")
    else:
        rows = [
            part
            for title, members in grouped(runs, group).items()
            for part in (
                _group_row(title, members, picked, width),
                *(_row(run, columns, picked) for run in members),
            )
        ]
    return f'<div class="wb-scroll">{table(head, "".join(rows), css="runs")}</div>'


def grouped(runs: Sequence[Run], group: str) -> dict[str, list[Run]]:
    """The runs by what they share, in the order of their first members."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(GROUPS[group](run), []).append(run)
    return found


def _with_sweeps(
    runs: Sequence[Run], columns: Sequence[Column], picked: Collection[str], *, shows_sweeps: bool
) -> list[str]:
    rows: list[str] = []
    sweep = None
    for run in runs:
        if shows_sweeps and run.group_id not in (None, sweep):
            name = link("sweep", escaped(sweep_name(run)), {"id": run.group_id}, css="wb-sweepname")
            rows.append(_heading_row(f"Sweep {name}", len(columns) + 1))
        sweep = run.group_id
        rows.append(_row(run, columns, picked))
    return rows


def _group_row(title: str, members: Sequence[Run], picked: Collection[str], width: int) -> str:
    """A group's name, its size and its lowest held-out FVU, with a box that selects it."""
    points = held_out(members)
    best = f" · best FVU {number(min(point.fvu for point in points))}" if points else ""
    size = counted(len(members), "run")
    text = f"<strong>{escaped(title)}</strong> {size}{best}"
    return _heading_row(text, width, check=_check_all(members, picked))


def _heading_row(text_html: str, width: int, *, check: str = "") -> str:
    return (
        f'<tr class="group"><td class="wb-checkcell">{check}</td>'
        f'<td colspan="{width}">{text_html}</td></tr>'
    )


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


def sweep_name(member: Run) -> str:
    """The name of a sweep: a member's name without the values that tell the members apart."""
    return re.sub(r"( [\w.]+=\S+)+$", "", member.name) or member.name


def _row(run: Run, columns: Sequence[Column], picked: Collection[str]) -> str:
    cells = "".join(
        f'<td class="num">{column.cell(run)}</td>'
        if column.number
        else f"<td>{column.cell(run)}</td>"
        for column in (NAME, *columns)
    )
    css = ' class="picked"' if run.id in picked else ""
    return f'<tr{css}><td class="wb-checkcell">{_check(run, picked)}</td>{cells}</tr>'


def _check(run: Run, picked: Collection[str]) -> str:
    """A box that selects a run, or deselects it."""
    return toggle_link("pick", run.id, on=run.id in picked, tip=f"Select {run.name}")


def _check_all(runs: Sequence[Run], picked: Collection[str]) -> str:
    """A box that adds all of some runs to the selection, or removes them."""
    ids = [run.id for run in runs]
    on = bool(ids) and set(ids).issubset(picked)
    kept = [run_id for run_id in picked if run_id not in ids]
    change = {"pick": ",".join(kept if on else [*kept, *ids]) or None}
    css, tip = ("wb-check on", "Deselect these") if on else ("wb-check", "Select these")
    return set_link("✓" if on else "", change, css=css, tip=tip)
