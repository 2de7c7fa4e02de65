"""Pieces of pages: headings, links, empty blocks."""

from __future__ import annotations

from streamlit.testing.v1 import AppTest

from frontend.html.blocks import feature_link, heading, href, link


def test_an_empty_block_draws_nothing() -> None:
    def page() -> None:
        from frontend.html.blocks import html_block

        html_block("")

    app = AppTest.from_function(page).run()
    assert not app.exception
    assert not app.html


def test_an_address_leaves_out_what_is_not_set_and_the_start_page_is_the_root() -> None:
    assert href("runs", {"tag": "k & l", "q": None, "status": ""}) == "./?tag=k+%26+l"
    assert href("feature", {"index": 0}) == "feature?index=0"


def test_user_text_in_headings_and_addresses_are_escaped() -> None:
    assert "<h1>&lt;b&gt;</h1>" in heading("<b>")
    assert link("run", "x", {"id": '"><b>'}) == '<a href="run?id=%22%3E%3Cb%3E">x</a>'
    assert feature_link("a", 3) == '<a class="wb-name" href="feature?id=a&amp;index=3">3</a>'
