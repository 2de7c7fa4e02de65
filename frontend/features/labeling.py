"""Automatic labels: the dialog that starts, follows and cancels labeling, and scores in lists."""

from __future__ import annotations

import html

import streamlit as st

from frontend.api.cache import client
from frontend.api.client import ApiProblem
from frontend.html.blocks import escaped_lines, html_block
from frontend.html.format import age, count, counted, percent, short_count
from frontend.shell.problems import live
from sae_engine.schema.features import FeatureSort
from sae_engine.schema.labels import (
    DetectionScore,
    FeatureLabel,
    LabelEstimate,
    LabelJob,
    LabelRequest,
)
from sae_engine.schema.runs import Run

SORTS: dict[FeatureSort, str] = {
    "max_activation": "Strongest first",
    "density": "Most frequent first",
    "index": "By index",
    "clarity": "Clearest first",
}
ENDINGS = {
    "finished": "The last labeling has finished.",
    "cancelled": "The last labeling was cancelled.",
    "failed": "The last labeling failed.",
    "interrupted": "The last labeling was interrupted.",
}


def score_note(written: FeatureLabel | None) -> str:
    """Precision and recall of a model's label, for lists; empty for other labels."""
    if written is None or written.origin.author != "model":
        return ""
    score = written.origin.score
    shown = f"P {percent(score.precision)} · R {percent(score.recall)}" if score else "not scored"
    tip = html.escape(_origin(written), quote=True)
    return f'<small class="wb-score" title="{tip}">{shown}</small>'


def origin_line(written: FeatureLabel) -> str:
    """The author and score of a model's label; empty for a person's."""
    if written.origin.author != "model" or not written.label:
        return ""
    return f'<p class="wb-origin">{html.escape(_origin(written))}</p>'


def _origin(written: FeatureLabel) -> str:
    origin = written.origin
    when = f" {age(origin.created_at)}" if origin.created_at else ""
    return f"Proposed by {origin.model}{when}. {_score_text(origin.score)}"


def _score_text(score: DetectionScore | None) -> str:
    if score is None:
        return "Not scored: it fires too rarely to hold out contexts."
    return (
        f"On held-out contexts: precision {percent(score.precision)}, recall "
        f"{percent(score.recall)} ({score.activating} active, {score.silent} inactive)."
    )


def label_menu(run: Run, snapshot: int) -> None:
    """The button that opens the dialog; contexts come from `snapshot`."""
    tip = "Let a language model propose and score labels"
    if st.button("Auto-label", key="label-features", help=tip):
        _dialog(run, snapshot)


@st.dialog("Label features automatically")
def _dialog(run: Run, snapshot: int) -> None:
    # Not in a placeholder: when that is emptied, the browser can reset an input to its default.
    try:
        newest = next(iter(client().label_jobs(run.id)), None)
        if newest is not None and newest.status == "running":
            live(lambda: _progress(run), active=True)
        else:
            _start(run, snapshot, newest)
    except ApiProblem as error:
        html_block(f'<p class="wb-origin">{escaped_lines(str(error))}</p>')


def _start(run: Run, snapshot: int, last: LabelJob | None) -> None:
    if last is not None:
        html_block(job_block(last))
    state = st.session_state  # read first: a problem with the estimate leaves no controls behind
    request = LabelRequest(
        limit=state.setdefault("label-limit", 50),
        sort=state.get("label-sort", "max_activation"),
        relabel=state.get("label-again", False),
        snapshot=snapshot,
    )
    estimate = client().estimate_labeling(run.id, request)
    st.number_input("Number of features", 1, 200_000, step=50, key="label-limit")
    st.selectbox("Order", list(SORTS), format_func=SORTS.__getitem__, key="label-sort")
    tip = "Labels written by people are never replaced."
    st.checkbox("Replace labels written by models", key="label-again", help=tip)
    html_block(f'<p class="wb-origin">{html.escape(estimate_line(estimate))}</p>')
    start = st.button("Start", type="primary", key="label-start", disabled=not estimate.features)
    if start:
        client().start_labeling(run.id, request)
        st.rerun(scope="fragment")


def estimate_line(estimate: LabelEstimate) -> str:
    """What labeling will take, in a sentence."""
    if not estimate.features:
        return "Every feature that fires already has a label."
    tokens = estimate.prompt_tokens + estimate.completion_tokens
    cost = f", cost {_money(estimate.cost)}" if estimate.cost is not None else ""
    return (
        f"{estimate.model} labels {counted(estimate.features, 'feature')} and scores the labels on "
        f"held-out contexts: {counted(estimate.calls, 'request')}, about {short_count(tokens)} "
        f"tokens{cost}."
    )


def _progress(run: Run) -> None:
    job = client().label_jobs(run.id)[0]
    done = job.labeled + job.kept + job.failed
    st.progress(done / job.total, text=f"{count(done)} of {counted(job.total, 'feature')}")
    html_block(job_block(job))
    if job.status == "running":
        if st.button("Cancel", icon=":material/stop:", key="label-cancel"):
            client().cancel_labeling(run.id)
            st.rerun(scope="fragment")
    elif st.button("Show labels", type="primary", key="label-close"):
        st.rerun()


def job_block(job: LabelJob) -> str:
    """The state or outcome of a labeling job, as HTML."""
    ending = ENDINGS.get(job.status)
    head = f"<strong>{ending}</strong><br>" if ending else ""
    return f'<p class="wb-origin">{head}{escaped_lines(job_line(job))}</p>'


def job_line(job: LabelJob) -> str:
    """The work done by a labeling job so far, and on a second line its last problem."""
    parts = [f"{count(job.labeled)} labeled"]
    if job.kept:
        parts.append(f"{count(job.kept)} labeled by a person meanwhile")
    if job.failed:
        parts.append(f"{count(job.failed)} without a usable answer")
    tokens = short_count(job.prompt_tokens + job.completion_tokens)
    parts.append(f"{counted(job.calls, 'request')}, {tokens} tokens")
    if job.cost is not None:
        parts.append(f"cost {_money(job.cost)}")
    return " · ".join(parts) + (f"\n{job.problem}" if job.problem else "")


def _money(amount: float) -> str:
    """An amount in the currency of the configured prices."""
    return f"{amount:,.2f}" if amount >= 0.01 or amount == 0 else "under 0.01"
