"""The page of one run: actions by status, place in the queue, alerts, machine; the system page."""

from __future__ import annotations

import re

import pytest
from streamlit.testing.v1 import AppTest

from backend.routes import saes
from frontend.runs.queue import new_position
from sae_engine.schema.runs import RunStatus
from sae_engine.schema.saes import Pushed
from tests.frontend.samples import ESCAPED
from tests.frontend.views.test_overview import plots
from tests.frontend.views.test_pages import Open, address, followed, shown
from tests.frontend.workbench import Workbench


def keys(app: AppTest) -> set[str | None]:
    return {button.key for button in app.button}


@pytest.mark.parametrize(
    ("status", "resumable", "offered"),
    [
        ("queued", False, {"stop"}),
        ("running", False, {"stop"}),
        ("stopping", False, {"force"}),
        ("finished", False, set[str]()),
        ("stopped", True, {"resume"}),
        ("stopped", False, {"retry"}),
        ("failed", True, {"resume"}),
        ("failed", False, {"retry"}),
        ("interrupted", True, {"resume"}),
    ],
)
def test_a_run_is_stopped_resumed_or_retried_by_its_state(
    open_page: Open, workbench: Workbench, status: RunStatus, resumable: bool, offered: set[str]
) -> None:
    workbench.add("here", status=status)
    if resumable:
        workbench.save_checkpoint("here")
    app = open_page("run", id="here")
    assert keys(app) & {"stop", "force", "resume", "retry"} == offered
    assert "archive" in keys(app)
    assert {link.proto.label for link in app.get("page_link")} >= {"Clone", "Compare"}
    assert app.button(key="delete").disabled == (status in ("queued", "running", "stopping"))


def test_a_failed_run_can_be_retried(open_page: Open, workbench: Workbench) -> None:
    app = open_page("run", id="failed")
    app.button(key="retry").click().run()
    assert workbench.runs["failed"].status == "queued"
    assert "stop" in keys(app)


def test_an_sae_is_pushed_to_the_hub(
    open_page: Open, workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "push-now" not in keys(open_page("run", id="live"))
    app = open_page("run", id="finished")

    def push(name: str, *, public: bool = False) -> str:
        app.text_input(key="push-to").set_value(name)
        app.checkbox(key="push-public").set_value(public)
        app.button(key="push-now").click().run()
        return " ".join(element.value for element in (*app.error, *app.success))

    assert push(" ") == "Name a repository, such as owner/name."
    assert "has no SAE to push." in push("me/sae")
    sent: list[tuple[str, bool]] = []

    def push_sae(run: object, target: str, *, private: bool) -> Pushed:
        sent.append((target, private))
        return Pushed(target=target, url="https://hub/commit", files=["a", "b"])

    monkeypatch.setattr(saes, "pushed_run", lambda settings, _session, row: row)
    assert "This server does not push to 'me/sae'" in push("me/sae")
    monkeypatch.setattr(saes, "require_allowed", lambda settings, target: None)
    monkeypatch.setattr(saes, "push_sae", push_sae)
    assert (
        push(" hub:me/sae/layer-1 ") == "Pushed 2 files: [hub:me/sae/layer-1](https://hub/commit)"
    )
    push("me/sae", public=True)
    assert sent == [("hub:me/sae/layer-1", True), ("hub:me/sae", False)]


def test_the_status_is_shown_once(open_page: Open) -> None:
    assert shown(open_page("run", id="finished")).count('class="wb-badge finished"') == 1
    assert shown(open_page("map", id="finished")).count('class="wb-badge finished"') == 1


def test_a_queued_run_shows_its_position_and_reason_and_can_be_moved(
    open_page: Open, workbench: Workbench
) -> None:
    workbench.add("first", "second", status="queued")
    text = shown(open_page("run", id="second"))
    assert "2nd in the queue." in text
    assert f"Waiting for cuda:0, in use by &#x27;live {ESCAPED}&#x27;." in text
    assert 'data-act="front second"' in text
    assert 'data-act="up first" title="Move up" aria-label="Move up" disabled' in shown(
        open_page("run", id="first")
    )


@pytest.mark.parametrize(
    ("verb", "before", "after"),
    [("front", 7, 1), ("up", 3, 2), ("up", 1, 1), ("down", 1, 2)],
)
def test_moves_go_to_the_front_or_one_place_up_or_down(verb: str, before: int, after: int) -> None:
    assert new_position(verb, before) == after


def test_alerts_are_badges_messages_and_marks_on_every_curve(
    open_page: Open, workbench: Workbench
) -> None:
    workbench.alert("finished", "divergence")
    app = open_page("run", id="finished", x="tokens")
    assert ">diverging</span>" in shown(app)
    assert f"Alert {ESCAPED}" in shown(app)
    for plot in plots(app).values():
        [flags] = [trace for trace in plot["figure"]["data"] if trace["uid"] == "notices"]
        assert flags["x"] == [5 * 1024, 50 * 1024]  # at the first point of the step, or after it
        assert "&lt;script&gt;" in flags["hovertext"][1]
        assert [line["x0"] for line in plot["figure"]["layout"]["shapes"]] == flags["x"]


@pytest.mark.parametrize(("columns", "shown_columns"), [("1", 1), ("3", 3), ("9", 2), ("", 2)])
def test_curves_are_laid_out_as_the_address_says(
    open_page: Open, columns: str, shown_columns: int
) -> None:
    app = open_page("run", id="finished", columns=columns)
    assert app.segmented_control(key="url:columns").value == shown_columns
    assert {plot["group"] for plot in plots(app).values()} == {"curves"}


def test_curves_are_downloaded_as_csv_named_after_the_run_and_the_step(open_page: Open) -> None:
    app = open_page("run", id="finished")
    [button] = [each for each in app.get("download_button") if each.proto.label == "CSV"]
    assert button.proto.id.endswith("-csv")


def test_name_tags_and_notes_are_changed_together_and_shown_as_text(
    open_page: Open, workbench: Workbench
) -> None:
    app = open_page("run", id="finished")
    app.text_input(key="name:finished").set_value("renamed")
    app.multiselect(key="tags:finished").set_value(["good"])
    app.text_area(key="notes:finished").set_value("a <b>note</b>\nof two lines")
    app.button(key="save").click().run()
    run = workbench.runs["finished"]
    assert (run.name, run.notes) == ("renamed", "a <b>note</b>\nof two lines")
    assert [tag.tag for tag in run.tags] == ["good"]
    assert "a &lt;b&gt;note&lt;/b&gt;<br>of two lines" in shown(app)
    assert 'href="./?tag=good"' in shown(app)


def test_a_run_is_archived_and_restored(open_page: Open, workbench: Workbench) -> None:
    app = open_page("run", id="finished")
    app.button(key="archive").click().run()
    assert workbench.runs["finished"].archived
    assert ">archived</span>" in shown(app)
    app.button(key="archive").click().run()
    assert not workbench.runs["finished"].archived


def test_a_clone_names_its_source_run_even_after_that_was_deleted(
    open_page: Open, workbench: Workbench
) -> None:
    workbench.change("failed", cloned_from="finished")
    assert 'cloned from <a href="run?id=finished">tiny baseline</a>' in shown(
        open_page("run", id="failed")
    )
    workbench.forget("finished")
    app = open_page("run", id="failed")
    assert "cloned from a deleted run" in shown(app)
    followed(app, "Clone")
    assert address(app, "clone") == "failed"


def test_the_machine_is_shown_while_a_run_works(open_page: Open) -> None:
    text = shown(open_page("run", id="live"))
    assert re.search(r"<span>\d+ CPUs?</span><span>\d+%", text)
    assert "<h3" in text
    assert " CPU" not in shown(open_page("run", id="finished"))


def test_the_system_page_shows_devices_slots_and_the_queue_in_its_order(
    open_page: Open, workbench: Workbench
) -> None:
    workbench.add("waits-b", "waits-a", "waits-c", status="queued")
    workbench.patch("waits-c", queue_position=1)
    text = shown(open_page("system"))
    places = [text.index(f"waits-{name}") for name in ("c", "b", "a")]
    assert places == sorted(places)
    assert "Queue <small>3</small>" in text
    assert "<strong>cpu</strong></td><td><small>free</small>" in text
    assert 'href="run?id=live"' in text


def test_only_a_server_that_does_not_supervise_says_so(
    open_page: Open, workbench: Workbench
) -> None:
    assert "This server does not start runs" in shown(open_page("system"))
    workbench.supervise()
    assert "does not start runs" not in shown(open_page("system"))


EVALUATION = "The values above were measured on held-out text. There are no training curves."


def test_an_imported_run_is_final_and_explained_once_it_is_evaluated(
    open_page: Open, workbench: Workbench
) -> None:
    workbench.configure("finished", "sae", pretrained="/data/theirs")
    text = shown(open_page("run", id="finished"))
    assert EVALUATION in text
    assert "imported from" in text
    assert ">final</a>" in text
    assert "tokens trained" not in text
    assert "tokens ·" not in text
    workbench.add("later", status="queued")
    workbench.configure("later", "sae", pretrained="/data/theirs")
    assert EVALUATION not in shown(open_page("run", id="later"))


@pytest.mark.parametrize("page", ["playground", "lookup"])
def test_the_only_snapshot_of_an_imported_run_is_final(
    open_page: Open, workbench: Workbench, page: str
) -> None:
    workbench.add("theirs")
    workbench.add_features("theirs", "a", 0)
    workbench.configure("theirs", "sae", pretrained="/data/theirs")
    app = open_page(page, id="theirs")
    [picker] = [box for box in app.selectbox if box.label == "Snapshot"]
    assert picker.options == ["Latest (final)", "Final"]
