"""The pages over the real API: what they show, where their links lead, what they send."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from streamlit.testing.v1 import AppTest

from frontend.api import cache as pages_server
from frontend.html.tokens import escaped
from frontend.shell.help import KEYS
from frontend.views.glossary import without_links
from tests.frontend.samples import ESCAPED
from tests.frontend.workbench import Workbench

Open = Callable[..., AppTest]

PAGES = {
    "runs": {},
    "launch": {"preset": "tiny"},
    "import_sae": {},
    "run": {"id": "finished"},
    "settings": {"id": "finished"},
    "features": {"id": "finished"},
    "feature": {"id": "finished", "index": "3"},
    "map": {"id": "finished"},
    "lookup": {"id": "finished", "q": " import"},
    "playground": {"id": "finished", "text": "import os", "token": "1", "steer": "3:1"},
    "compare": {"runs": "live,finished"},
    "system": {},
    "glossary": {},
}


def shown(app: AppTest) -> str:
    """All HTML of a page, sanitized or not."""
    linked = [json.loads(e.proto.json) for e in app.get("bidi_component") if e.proto.json]
    return "\n".join([*(h.body for h in app.html), *(str(text) for text in linked)])


def address(app: AppTest, name: str) -> str:
    """A value of the page's address, which AppTest holds as text or as a list."""
    value = app.query_params[name]
    return value if isinstance(value, str) else value[-1]


def moved(app: AppTest) -> AppTest:
    """The page that the browser would go to by itself."""
    [move] = [e.proto for e in app.get("bidi_component") if e.proto.component_name == "wb_move"]
    return opened(app, str(json.loads(move.json)))


def followed(app: AppTest, label: str) -> AppTest:
    """The page that a link button opens."""
    proto = button_link(app, label).proto
    assert not proto.disabled
    return opened(app, f"{proto.page or './'}?{proto.query_string}")


def button_link(app: AppTest, label: str) -> Any:
    """The link button with a label."""
    [found] = [e for e in app.get("page_link") if e.proto.label == label]
    return found


def opened(app: AppTest, href: str) -> AppTest:
    """The page behind an address, opened in the same session."""
    page, _, query = href.partition("?")
    app.switch_page(f"views/{'runs' if page == './' else page}.py")
    app.query_params.clear()
    app.query_params.update(parse_qs(query))
    return app.run()


def test_the_server_never_changes_the_page_on_its_own() -> None:
    """Decision 0021: timers of the old page would draw into the new one."""
    for path in Path(pages_server.__file__).parents[1].rglob("*.py"):
        assert "st.switch_page(" not in path.read_text("utf-8"), path


@pytest.mark.parametrize("page", PAGES)
def test_every_page_opens_from_its_address(open_page: Open, page: str) -> None:
    app = open_page(page, **PAGES[page])
    assert not app.exception
    assert "No connection" not in shown(app)


@pytest.mark.parametrize(
    "page", ["runs", "run", "features", "feature", "lookup", "playground", "compare", "system"]
)
def test_names_labels_and_texts_appear_escaped(open_page: Open, page: str) -> None:
    query = {"id": "live"} if page == "run" else PAGES[page]
    text = shown(open_page(page, **query))
    assert ESCAPED in text
    assert "<script" not in text


def test_without_runs_one_button_leads_to_the_preset_tiny(
    open_page: Open, workbench: Workbench
) -> None:
    workbench.forget("finished", "failed", "live")
    app = open_page("runs")
    assert not app.button
    followed(app, "Train your first SAE (one to two minutes)")
    assert address(app, "preset") == "tiny"
    assert 'class="wb-preset on" href="launch?preset=tiny"' in shown(app)


def test_runs_can_be_filtered_through_the_address(open_page: Open) -> None:
    text = shown(open_page("runs", q="baseline"))
    assert "tiny baseline" in text
    assert "lr too high" not in text
    assert "No matching runs" in shown(open_page("runs", status="queued"))


def test_starting_sends_only_changed_settings_and_opens_the_run(
    open_page: Open, workbench: Workbench
) -> None:
    app = open_page("launch", preset="tiny")
    app.text_input(key="url:sae.k").set_value("24").run()
    app.text_input(key="url:name").set_value("mine").run()
    assert any("--name mine --sae.k 24" in code.value for code in app.code)
    app.button(key="start").click().run()
    [sent] = workbench.posted("/api/runs")
    assert sent == {"preset": "tiny", "config": {"sae": {"k": 24}}, "name": "mine"}
    assert workbench.runs[address(moved(app), "id")].name == "mine"


def test_an_invalid_form_is_not_sent_and_says_why_beside_the_field(
    open_page: Open, workbench: Workbench
) -> None:
    app = open_page("launch", preset="tiny")
    app.text_input(key="url:sae.k").set_value("5000").run()
    assert app.button(key="start").disabled
    assert "Fix 1 setting" in shown(app)
    assert '<p class="wb-field-problem">sae.k = 5000 is larger' in shown(app)


def test_a_problem_found_by_the_server_is_shown_beside_its_field(
    open_page: Open, workbench: Workbench
) -> None:
    app = open_page("launch", preset="tiny")
    app.text_input(key="url:model.layer").set_value("9").run()
    app.button(key="start").click().run()
    assert '<p class="wb-field-problem">Layer 9 does not exist' in shown(app)
    app.text_input(key="url:model.layer").set_value("2").run()
    app.button(key="start").click().run()
    assert len(workbench.runs) == 4


def test_a_clone_starts_from_the_settings_of_its_run(open_page: Open, workbench: Workbench) -> None:
    workbench.configure("finished", "sae", k=48)
    app = open_page("launch", clone="finished")
    assert app.text_input(key="url:sae.k").value == "48"
    assert any("--sae.k 48" in code.value for code in app.code)
    app.button(key="start").click().run()
    assert workbench.posted("/api/runs")[0]["config"] == {"sae": {"k": 48}}


def test_a_live_run_can_be_stopped_and_then_forced(open_page: Open, workbench: Workbench) -> None:
    app = open_page("run", id="live")
    app.button(key="stop").click().run()
    assert workbench.runs["live"].status == "stopping"
    assert workbench.runs["live"].force_stop_at is None
    app.button(key="force").click().run()
    assert workbench.runs["live"].force_stop_at is not None


def test_an_ended_run_cannot_be_stopped_and_can_be_deleted(
    open_page: Open, workbench: Workbench
) -> None:
    app = open_page("run", id="finished")
    assert "stop" not in [button.key for button in app.button]
    app.button(key="delete").click().run()
    app.button(key="delete-not").click().run()
    assert "delete-sure" not in [button.key for button in app.button]
    app.button(key="delete").click().run()
    assert "finished" in workbench.runs
    app.button(key="delete-sure").click().run()
    assert "finished" not in workbench.runs
    assert "lr too high" in shown(moved(app))


def test_a_run_that_ended_early_can_be_resumed(open_page: Open, workbench: Workbench) -> None:
    assert "resume" not in [button.key for button in open_page("run", id="failed").button]
    workbench.save_checkpoint("failed")
    app = open_page("run", id="failed")
    app.button(key="resume").click().run()
    assert workbench.runs["failed"].status == "queued"
    assert "resume" not in [button.key for button in app.button]


def test_a_sweeps_runs_lead_to_each_other(open_page: Open, workbench: Workbench) -> None:
    for name in ("finished", "failed"):
        workbench.change(name, group_id="g7")
    assert shown(open_page("runs")).count('class="wb-sweep" href="sweep?id=g7"') == 2
    assert 'href="sweep?id=g7"' in shown(open_page("run", id="finished"))
    text = shown(open_page("sweep", id="g7"))
    assert 'href="run?id=finished"' in text
    assert 'href="run?id=failed"' in text
    assert ESCAPED not in text


def test_an_imported_sae_shows_no_k(open_page: Open, workbench: Workbench) -> None:
    workbench.configure("finished", "sae", pretrained="/saes/theirs")
    text = shown(open_page("runs", q="baseline"))
    assert "<small>imported</small>" in text
    assert "k 16" not in text


@pytest.mark.parametrize("source", ["/saes/theirs", "hub:google/scope/layer_12"])
def test_an_imported_run_says_where_it_came_from_and_draws_no_curves(
    open_page: Open, workbench: Workbench, source: str
) -> None:
    workbench.configure("finished", "sae", pretrained=source)
    app = open_page("run", id="finished")
    assert f"imported from <code>{source}</code>" in shown(app)
    assert "This SAE was trained elsewhere" in shown(app)
    assert not [e for e in app.get("bidi_component") if e.proto.component_name == "wb_plot"]


@pytest.mark.parametrize("page", ["runs", "launch", "feature", "glossary"])
def test_every_page_lists_the_keys_and_leads_to_glossary_and_reference(
    open_page: Open, page: str
) -> None:
    app = open_page(page, **PAGES[page])
    [help_] = [e.proto for e in app.get("bidi_component") if e.proto.component_name == "wb_help"]
    text = str(json.loads(help_.json))
    assert '<a href="/glossary">Glossary</a>' in text
    assert "/api/docs" in text
    assert all(f"<kbd>{escaped(key)}</kbd>" in text for key in KEYS)


def test_the_glossary_has_its_tables_and_no_links_to_files(open_page: Open) -> None:
    [text] = [element.value for element in open_page("glossary").markdown]
    assert "| dead" in text
    assert "](" not in text
    assert without_links("[a](b.md#c) [d](https://e)") == "a [d](https://e)"


@pytest.mark.parametrize(
    ("page", "query", "feature"),
    [
        ("playground", {"id": "finished", "text": "import os"}, "id=finished&amp;index=10"),
        ("compare", {"runs": "finished,failed", "part": "features"}, "id=failed&amp;index=3"),
    ],
)
def test_an_example_opens_its_feature(
    open_page: Open, page: str, query: dict[str, str], feature: str
) -> None:
    text = shown(open_page(page, **query))
    assert f'<a class="wb-example" href="feature?{feature}"><div class="wb-kwic">' in text


def test_a_failed_run_says_why_in_words(open_page: Open) -> None:
    app = open_page("run", id="failed")
    assert "The loss became NaN at step 120; lower train.lr." in shown(app)
    [log_tail] = [part for part in app.expander if part.label == "Last lines of the log"]
    assert not log_tail.proto.expanded
    assert "step 120 nan" in log_tail.code[0].value


def test_a_run_draws_a_chart_for_every_metric_that_was_measured(open_page: Open) -> None:
    app = open_page("run", id="finished", x="tokens", log="1")
    plots = [e.proto for e in app.get("bidi_component") if e.proto.component_name == "wb_plot"]
    specs = [json.loads(plot.json)["figure"] for plot in plots]
    titles = [spec["layout"]["title"]["text"] for spec in specs]
    assert titles[0] == "Loss and FVU"
    assert "Learning rate" in titles
    assert specs[0]["layout"]["yaxis"]["type"] == "log"
    assert specs[0]["data"][0]["x"][:2] == [5 * 1024, 10 * 1024]


@pytest.mark.parametrize("page", ["run", "features", "feature"])
def test_the_search_box_leads_to_the_lookup(open_page: Open, page: str) -> None:
    app = open_page(page, **PAGES[page])
    app.text_input(key="search").set_value(" import").run()
    moved(app)
    assert address(app, "q") == " import"
    assert "840 occurrences" in shown(app)


def test_the_lookup_shows_tokens_with_counts_and_features_with_statistics(open_page: Open) -> None:
    text = shown(open_page("lookup", id="finished", q="import"))
    assert "<small>420</small>" in text
    assert "33.6%" in text  # feature 504 fires on 282 of 840 positions
    assert 'href="feature?id=finished&amp;index=504&amp;q=import"' in text


def test_a_token_that_does_not_occur_is_reported(open_page: Open) -> None:
    text = shown(open_page("lookup", id="finished", q="zzz"))
    assert "&#x27;zzz&#x27; does not occur" in text
    assert "<table" not in text


def test_a_run_without_snapshots_shows_that_it_has_no_features_yet(
    open_page: Open, workbench: Workbench
) -> None:
    for page in ("features", "feature", "map", "lookup", "playground"):
        assert "No features yet" in shown(open_page(page, id="live"))


@pytest.mark.parametrize("page", ["run", "features", "feature", "map", "lookup", "playground"])
def test_an_unknown_run_shows_a_message_and_a_way_back(open_page: Open, page: str) -> None:
    app = open_page(page, id="nope")
    assert not app.exception
    assert "There is no run &#x27;nope&#x27;." in shown(app)
    assert "tiny baseline" in shown(followed(app, "Show all runs"))


def test_an_address_without_a_run_shows_a_message_and_a_way_back(open_page: Open) -> None:
    app = open_page("run")
    assert "Choose a run" in shown(app)
    assert "tiny baseline" in shown(followed(app, "Show all runs"))


def test_an_unreachable_server_shows_one_sentence(
    open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAE_WORKBENCH_API_URL", "http://127.0.0.1:9")
    app = open_page("runs")
    assert not app.exception
    assert "cannot be reached. Retrying every 2 seconds; runs keep training." in shown(app)
