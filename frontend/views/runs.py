"""Start page: every run with its state and quality, newest first."""

from __future__ import annotations

import html

import streamlit as st

from frontend.blocks import (
    badge,
    empty_state,
    html_block,
    link,
    progress_bar,
    show_linked,
    sweep_link,
)
from frontend.cards import fraction_done, metric_text
from frontend.state import bound, client, live, open_page, param
from frontend.token_view import escaped
from frontend.words import DASH, age, duration, elapsed, percent, short_count
from sae_engine.schema.config import SAEConfig
from sae_engine.schema.runs import Run, RunPage, RunStatus

STATUSES: tuple[RunStatus, ...] = (
    "running",
    "queued",
    "finished",
    "stopped",
    "failed",
    "interrupted",
)
PAGE_SIZE = 50


def show() -> None:
    """The page."""
    status, query, group = _status(), param("q"), param("group")
    if status is None and query is None and group is None and not client().runs(limit=1).items:
        _welcome()
        return
    title, search, filters, new = st.columns([2, 3, 2, 1.3], vertical_alignment="center")
    with title:
        if group is None:
            html_block('<h1 class="wb-title">Runs</h1>')
        else:
            crumb = f'<div class="wb-crumb">{link("./", "Runs", {})}</div>'
            show_linked(f'<div class="wb-head">{crumb}<h1>Sweep</h1></div>', key="sweep-title")
    with search:
        key, write = bound("q", query or "")
        st.text_input(
            "Filter by text",
            key=key,
            on_change=write,
            placeholder="Filter by name or tag",
            icon=":material/search:",
            label_visibility="collapsed",
        )
    with filters:
        key, write = bound("status", status or "any status", default="any status")
        st.selectbox(
            "Status",
            ("any status", *STATUSES),
            key=key,
            on_change=write,
            label_visibility="collapsed",
        )
    with new:
        if st.button("New run", type="primary", icon=":material/add:", width="stretch"):
            open_page("launch")

    _picking()
    live(_table, active=True)


def _picking() -> None:
    """While a run waits for another one to be compared with, say so and offer a way out."""
    picked = param("compare")
    if picked is None:
        return
    name = escaped(client().run(picked).name)
    cancel = link("./", "Cancel", _filters(), css="wb-pick")
    body = f"<span>Choose the run to compare <b>{name}</b> with. {cancel}</span>"
    show_linked(f'<div class="wb-notice">{body}</div>', key="picking")


def _filters() -> dict[str, object | None]:
    """What of the URL says which runs are listed."""
    return {"q": param("q"), "status": _status(), "group": param("group")}


def _status() -> RunStatus | None:
    return next((status for status in STATUSES if status == param("status")), None)


def _welcome() -> None:
    html_block(
        empty_state(
            "No runs yet",
            "Train a sparse autoencoder on a small embedded language model and browse what its "
            "features mean while they form. Everything works offline, on a laptop.",
        )
    )
    _, middle, _ = st.columns([1, 1.2, 1])
    with middle:
        if st.button(
            "Train your first SAE (about two minutes)",
            type="primary",
            icon=":material/play_arrow:",
            width="stretch",
        ):
            open_page("launch", preset="tiny")


def _table() -> None:
    page = client().runs(
        status=_status(),
        q=param("q"),
        group_id=param("group"),
        limit=PAGE_SIZE,
        cursor=param("cursor"),
    )
    if not page.items:
        html_block(empty_state("No run matches", "Change the text or the status above."))
        return
    head = "".join(
        f'<th{css} title="{html.escape(tip, quote=True)}">{name}</th>'
        for name, css, tip in _COLUMNS
    )
    body = "".join(_row(run) for run in page.items)
    show_linked(
        f'<table class="wb-table runs"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        + _older(page),
        key="runs-table",
    )


def _older(page: RunPage) -> str:
    if page.next_cursor is None:
        return ""
    kept = _filters() | {"compare": param("compare"), "cursor": page.next_cursor}
    return f'<p class="wb-more">{link("./", "Older runs", kept)}</p>'


_NUM = ' class="num"'
_COLUMNS = (
    ("Run", "", "Name and what it is trained on"),
    ("Status", "", "What the run is doing"),
    ("Progress", "", "Steps done"),
    ("Latents", _NUM, "Number of latents and how many are kept per token"),
    ("FVU", _NUM, "Fraction of variance unexplained, held out once it is measured"),
    ("L0", _NUM, "Mean active latents per token"),
    ("CE delta", _NUM, "Nats per token lost with reconstructions spliced in"),
    ("Tokens/s", _NUM, "Training tokens per second"),
    ("Took", _NUM, "Time since the start"),
    ("Created", _NUM, "When the run was made"),
    ("", _NUM, "Two runs side by side"),
)


def _row(run: Run) -> str:
    fraction = fraction_done(run)
    share = percent(fraction) if fraction is not None else ""
    speed = run.metrics.get("tokens_per_second")
    fvu = "eval_fvu" if "eval_fvu" in run.metrics else "fvu"
    name = link("run", f"<strong>{escaped(run.name)}</strong>", {"id": run.id}, css="wb-name")
    where = f"{escaped(run.config.model.name)} · {escaped(run.config.hook_name)}{sweep_link(run)}"
    cells = (
        f'{name}<span class="wb-sub">{where}</span>',
        badge(run.status),
        f'{progress_bar(fraction, css=run.status)}<span class="wb-sub">{share}</span>',
        _latents(run.config.sae),
        metric_text(run, fvu),
        metric_text(run, "l0" if "l0" in run.metrics else "eval_l0"),
        metric_text(run, "ce_delta"),
        short_count(speed) if isinstance(speed, float) else DASH,
        duration(elapsed(run.started_at, run.ended_at)),
        age(run.created_at),
        _compare_link(run),
    )
    columns = zip(_COLUMNS, cells, strict=True)
    return f"<tr>{''.join(f'<td{css}>{cell}</td>' for (_, css, _), cell in columns)}</tr>"


def _compare_link(run: Run) -> str:
    """Chooses a run to compare; once one is chosen, leads from the others to the comparison."""
    picked = param("compare")
    if picked is None:
        query = _filters() | {"cursor": param("cursor"), "compare": run.id}
        return link("./", "Compare", query, css="wb-pick")
    if picked == run.id:
        return "<small>this one</small>"
    return link("compare", "with this", {"a": picked, "b": run.id}, css="wb-pick")


def _latents(sae: SAEConfig) -> str:
    if sae.pretrained is not None:
        return "<small>imported</small>"
    width = short_count(sae.d_sae) if sae.d_sae else f"{sae.expansion_factor or 8}×"
    return f"{width}<small> k {sae.k}</small>"


if __name__ == "__main__":
    show()
