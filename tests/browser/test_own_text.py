"""A file is uploaded by the browser, entered into the form, and previewed."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.server import Server


def test_an_uploaded_file_becomes_the_text_of_the_form(
    page: Page, workbench_server: Server, tmp_path: Path
) -> None:
    text = tmp_path / "my corpus.jsonl"
    text.write_text("".join(f'{{"id": {n}, "body": "document {n}"}}\n' for n in range(500)))
    page.goto(f"{workbench_server.url}/launch?preset=quick-test")
    box = page.locator(".wb-upload input")
    box.set_input_files(text)
    expect(page.locator(".wb-upload .note")).to_have_text("Uploaded to texts/my corpus.jsonl.")
    expect(page.get_by_label("dataset", exact=True)).to_have_value("texts/my corpus.jsonl")
    expect(page.get_by_label(re.compile("^text.*column$"))).to_have_value("body")
    page.get_by_text("Preview of the text").click()
    expect(page.locator(".wb-documents li")).to_have_count(3)
    box.set_input_files(text)
    expect(page.locator(".wb-upload .note")).to_contain_text("already has a file")
