"""The text on the launch page: an upload fills in the form, a preview shows documents."""

from __future__ import annotations

import pytest

from frontend.launch.own_text import preview_block
from sae_engine.schema.texts import TextPreview
from tests.frontend.samples import ESCAPED, NASTY
from tests.frontend.views.test_pages import Open, shown
from tests.frontend.workbench import Workbench


def previewed(**changes: object) -> str:
    whole = {"dataset": "d", "columns": [], "text_column": None, "documents": [], "notices": []}
    whole["division"] = None
    return preview_block([TextPreview.model_validate(whole | changes)])


def test_a_preview_names_its_column_among_the_others_and_escapes_everything() -> None:
    text = previewed(
        dataset=NASTY, columns=["id", NASTY, "text"], text_column="text", documents=[NASTY]
    )
    assert "<script" not in text
    assert f"column <code>text</code> (others: id, {ESCAPED})" in text
    assert f"<li>{ESCAPED}</li>" in text


@pytest.mark.parametrize(
    ("division", "words"),
    [
        ("paragraphs", "a document ends at each blank line"),
        ("lines", "each line is a document"),
        ("file", "each file is one document"),
    ],
)
def test_a_preview_says_how_plain_text_is_divided(division: str, words: str) -> None:
    assert f"plain text; {words}</p>" in previewed(documents=["a"], division=division)


def test_a_preview_says_what_has_no_column_or_is_not_read_yet() -> None:
    assert "plain text</p>" in previewed(documents=["a"])
    assert "on the Hugging Face hub" in previewed(text_column="text")
    assert "no text to show" in preview_block([])


@pytest.mark.parametrize("column", ["body", None])
def test_an_uploaded_file_is_entered_into_the_form(
    open_page: Open, workbench: Workbench, column: str | None
) -> None:
    """The browser uploads it; the script receives the API's answer."""
    from streamlit.testing.v1 import AppTest

    def script(column: str | None) -> None:
        import json

        import streamlit as st

        from frontend.launch.own_text import use_text

        use_text(json.dumps({"path": "texts/a", "bytes": 1, "text_column": column}))
        use_text("<html>not from the API")
        for path in ("data.dataset", "data.text_column"):
            st.text_input(path, st.query_params.get(path, "text"))

    app = AppTest.from_function(script, kwargs={"column": column}).run()
    assert not app.exception
    assert [box.value for box in app.text_input] == ["texts/a", column or "text"]


def test_the_preview_of_the_page_reads_the_forms_text(
    open_page: Open, workbench: Workbench
) -> None:
    folder = workbench.settings.data_dir / "texts"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"text": "three"}\n')
    app = open_page("launch", preset="tiny")
    assert workbench.num_requests("/preview") == 0  # only once it is unfolded
    [box] = [box for box in app.text_input if box.key == "url:data.dataset"]
    box.set_value("texts/a.jsonl")
    app.session_state["preview"] = True
    app.run()
    assert "column <code>text</code>" in shown(app)
    assert "<li>one</li>" in shown(app) or "<li>two</li>" in shown(app)
    box.set_value("texts/b.jsonl").run()
    assert "There is no file or folder" in shown(app)
