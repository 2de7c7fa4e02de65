"""Labels of models are shown with their score, and made from a dialog."""

from __future__ import annotations

from collections.abc import Callable

from streamlit.testing.v1 import AppTest

from frontend.api.client import WorkbenchClient
from frontend.features.labeling import estimate_line, job_block, job_line, origin_line, score_note
from sae_engine.schema.labels import FeatureLabel, LabelEstimate, LabelRequest, LabelUpdate
from tests.frontend.conftest import FakeServer
from tests.frontend.fake_labels import BY_MODEL, BY_PERSON, label_job
from tests.frontend.fake_world import World
from tests.frontend.views.test_pages import shown

Open = Callable[..., AppTest]


def label(**changes: object) -> FeatureLabel:
    fields = {"feature": 3, "label": "x", "notes": "", "starred": False, "origin": BY_MODEL}
    return FeatureLabel.model_validate(fields | changes)


def test_only_a_models_label_has_a_score_beside_it() -> None:
    note = score_note(label())
    assert "P 90.0 % · R 75.0 %" in note
    assert "fake &lt;b&gt;model&lt;/b&gt;" in note
    assert "<b>" not in note
    assert score_note(label(origin=BY_PERSON)) == score_note(None) == ""
    assert "not scored" in score_note(label(origin=BY_MODEL.model_copy(update={"score": None})))


def test_a_feature_says_who_proposed_its_label_and_how_well_it_detects() -> None:
    line = origin_line(label())
    assert "Proposed by fake &lt;b&gt;model&lt;/b&gt;" in line
    assert "precision 90.0 %, recall 75.0 % (20 active, 19 inactive)" in line
    assert origin_line(label(origin=BY_PERSON)) == origin_line(label(label="")) == ""


def test_the_list_and_the_page_of_a_feature_show_the_score(open_page: Open, world: World) -> None:
    world.labels[7] = LabelUpdate(label="sevens")
    world.origins[7] = BY_MODEL
    assert "P 90.0 % · R 75.0 %" in shown(open_page("features", id="finished", sort="index"))
    assert "precision 90.0 %" in shown(open_page("feature", id="finished", index="7"))
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


def test_a_job_says_what_it_did_and_what_went_wrong_as_text() -> None:
    job = label_job(kept=1, failed=2, cost=0.25, problem="<img src=x>", status="failed")
    assert job_line(job).splitlines() == [
        "10 labeled · 1 meanwhile labeled by a person · 2 without a usable answer · "
        "50 requests, 32k tokens · cost 0.25",
        "<img src=x>",
    ]
    assert "The last labeling failed." in job_block(job)
    assert "&lt;img src=x&gt;" in job_block(job)


def test_the_dialog_begins_with_an_estimate_or_with_what_is_running(
    open_page: Open, world: World
) -> None:
    app = open_page("features", id="finished")
    app.button(key="label-features").click().run()
    assert "labels 50 features" in shown(app)
    assert "250 requests" in shown(app)
    assert not app.button(key="label-start").disabled
    world.label_jobs.append(label_job())
    app = open_page("features", id="finished")
    app.button(key="label-features").click().run()
    assert "10 labeled · 50 requests" in shown(app)
    assert [b.label for b in app.button if b.key.startswith("label-")] == ["Label", "Cancel"]


def test_where_no_model_is_set_the_dialog_says_so_and_offers_nothing(
    open_page: Open, world: World
) -> None:
    world.can_label = False
    app = open_page("features", id="finished")
    app.button(key="label-features").click().run()
    assert "&lt;b&gt;No model&lt;/b&gt; is set." in shown(app)
    assert [b.key for b in app.button if b.key.startswith("label-")] == ["label-features"]
    assert not [n for n in app.number_input if n.key == "label-limit"]


def test_the_client_sends_what_it_is_asked_to(server: FakeServer, world: World) -> None:
    with WorkbenchClient(server.url) as client:
        world.labels[7] = LabelUpdate(label="sevens")
        world.labels[8] = LabelUpdate(label="eights")
        assert {w.feature for w in client.labels("finished", [7, 8, 9])} == {7, 8}
        assert {w.feature for w in client.labels("finished")} == {3, 7, 8}
        assert client.estimate_labeling("finished", LabelRequest(limit=9)).calls == 45
        assert client.start_labeling("finished", LabelRequest(limit=9)).total == 9
        assert client.label_jobs("finished")[0].status == "running"
        assert client.cancel_labeling("finished").status == "cancelled"
