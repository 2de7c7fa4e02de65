"""Model labels are shown with their score and made from a dialog."""

from __future__ import annotations

import html
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from backend import store
from backend.store import label_jobs
from frontend.features.labeling import estimate_line, job_block, job_line, origin_line, score_note
from sae_engine.schema.labels import (
    DetectionScore,
    FeatureLabel,
    LabelEstimate,
    LabelJob,
    LabelOrigin,
    LabelRequest,
    LabelUpdate,
)
from tests.backend.conftest import wait_for
from tests.backend.fake_endpoint import Endpoint, endpoint
from tests.frontend.views.test_pages import Open, shown
from tests.frontend.workbench import Workbench

MODEL = "fake <b>model</b>"
SCORE = DetectionScore(precision=0.9, recall=0.75, balanced_accuracy=0.8, activating=20, silent=19)
BY_PERSON = LabelOrigin(
    author="person", model=None, prompt_version=None, created_at=None, score=None
)
BY_MODEL = LabelOrigin(
    author="model",
    model=MODEL,
    prompt_version="1",
    created_at=datetime(2026, 1, 2, tzinfo=UTC),
    score=SCORE,
)
COUNTS = {"labeled": 10, "calls": 50, "prompt_tokens": 30_000, "completion_tokens": 2_000}


@pytest.fixture
def asked() -> Iterator[Endpoint]:
    """An endpoint that answers nothing before its gate is opened."""
    with endpoint() as asked:
        asked.gate.clear()
        yield asked


@pytest.fixture
def changed_settings(asked: Endpoint) -> dict[str, Any]:
    prices = {"labels_input_price": 1.0, "labels_output_price": 2.0}
    return {"labels_base_url": asked.url, "labels_model": MODEL, **prices}


def label(**changes: object) -> FeatureLabel:
    fields = {"feature": 3, "label": "x", "notes": "", "starred": False, "origin": BY_MODEL}
    return FeatureLabel.model_validate(fields | changes)


def test_only_a_models_label_has_a_score_beside_it() -> None:
    note = score_note(label())
    assert "P 90.0% · R 75.0%" in note
    assert "fake &lt;b&gt;model&lt;/b&gt;" in note
    assert "<b>" not in note
    assert score_note(label(origin=BY_PERSON)) == score_note(None) == ""
    assert "not scored" in score_note(label(origin=BY_MODEL.model_copy(update={"score": None})))


def test_the_origin_line_names_the_model_and_its_detection_score() -> None:
    line = origin_line(label())
    assert "Proposed by fake &lt;b&gt;model&lt;/b&gt;" in line
    assert "precision 90.0%, recall 75.0% (20 active, 19 inactive)" in line
    assert origin_line(label(origin=BY_PERSON)) == origin_line(label(label="")) == ""


def test_the_list_and_the_page_of_a_feature_show_the_score(
    open_page: Open, workbench: Workbench
) -> None:
    with workbench.writing() as session:
        store.propose_label(
            session, "finished", 7, "sevens", model=MODEL, prompt_version="1", score=SCORE
        )
    assert "P 90.0% · R 75.0%" in shown(open_page("features", id="finished", sort="index"))
    assert "precision 90.0%" in shown(open_page("feature", id="finished", index="7"))
    assert "Proposed by" not in shown(open_page("feature", id="finished", index="3"))


def test_an_estimate_is_a_sentence() -> None:
    estimate = LabelEstimate(
        model="m", features=40, calls=200, prompt_tokens=150_000, completion_tokens=10_000, cost=0.5
    )
    assert estimate_line(estimate) == (
        "m labels 40 features and scores the labels on held-out contexts: 200 requests, "
        "about 160k tokens, cost 0.50."
    )
    assert "cost" not in estimate_line(estimate.model_copy(update={"cost": None}))
    assert "cost under 0.01" in estimate_line(estimate.model_copy(update={"cost": 0.0004}))
    none_left = estimate.model_copy(update={"features": 0})
    assert estimate_line(none_left) == "Every feature that fires already has a label."


def test_a_job_line_lists_its_counts_and_escapes_its_problem() -> None:
    job = LabelJob(
        id=1,
        status="failed",
        model=MODEL,
        snapshot=100,
        total=40,
        kept=1,
        failed=2,
        cost=0.25,
        problem="<img src=x>",
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
        ended_at=None,
        **COUNTS,
    )
    assert job_line(job).splitlines() == [
        "10 labeled · 1 labeled by a person meanwhile · 2 without a usable answer · "
        "50 requests, 32k tokens · cost 0.25",
        "<img src=x>",
    ]
    assert "The last labeling failed." in job_block(job)
    assert "&lt;img src=x&gt;" in job_block(job)


def test_the_dialog_opens_with_an_estimate_or_the_running_job(
    open_page: Open, workbench: Workbench
) -> None:
    app = open_page("features", id="finished")
    app.button(key="label-features").click().run()
    estimate = workbench.client.estimate_labeling("finished", LabelRequest(limit=50))
    assert estimate.features == 50
    assert html.escape(estimate_line(estimate)) in shown(app)
    assert not app.button(key="label-start").disabled
    pid, created = workbench.services.labeler.process()
    with workbench.writing() as session:
        job = label_jobs.add_label_job(
            session, "finished", snapshot=100, model=MODEL, total=40, pid=pid, pid_created=created
        )
        label_jobs.count_for_label_job(session, job.id, **COUNTS)
    app = open_page("features", id="finished")
    app.button(key="label-features").click().run()
    assert "10 labeled · 50 requests" in shown(app)
    assert [b.label for b in app.button if b.key.startswith("label-")] == ["Auto-label", "Cancel"]


@pytest.mark.parametrize("changed_settings", [{}])
def test_without_a_configured_model_the_dialog_says_so_and_offers_nothing(open_page: Open) -> None:
    app = open_page("features", id="finished")
    app.button(key="label-features").click().run()
    assert "No language model is configured for labels" in shown(app)
    assert [b.key for b in app.button if b.key.startswith("label-")] == ["label-features"]
    assert not [n for n in app.number_input if n.key == "label-limit"]


def test_the_client_lists_estimates_starts_and_cancels_labelings(
    workbench: Workbench, asked: Endpoint
) -> None:
    client = workbench.client
    client.label("finished", 7, LabelUpdate(label="sevens"))
    client.label("finished", 8, LabelUpdate(label="eights"))
    assert {w.feature for w in client.labels("finished", [7, 8, 9])} == {7, 8}
    assert {w.feature for w in client.labels("finished")} == {3, 7, 8}
    assert client.estimate_labeling("finished", LabelRequest(limit=9)).features == 9
    assert client.start_labeling("finished", LabelRequest(limit=9)).total == 9
    wait_for(lambda: bool(asked.asked))
    assert client.label_jobs("finished")[0].status == "running"
    assert client.cancel_labeling("finished").status == "cancelled"
