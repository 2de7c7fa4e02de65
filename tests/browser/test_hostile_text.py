"""A corpus may hold anything; whatever it holds is shown as text."""

from __future__ import annotations

import json
import random
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from sae_engine.schema.runs import Run
from tests.browser.server import Server

pytestmark = pytest.mark.timeout(600)

_PAYLOADS = [
    "<script>window.harmed = true; alert('harm')</script>",
    '<img src=x onerror="window.harmed = true">',
    "</code></div><script>window.harmed = true</script>",
    "[link](javascript:window.harmed=true) **bold** $x$ <b>bold</b>",
]
_WORDS = ["def", "return", "import", "class", "self", "value", "list", "of", "the", "in", "None"]


def _write_corpus(path: Path) -> None:
    """Documents of plain words with a payload in the middle of each."""
    chooser = random.Random(0)
    with path.open("w", encoding="utf-8") as lines:
        for number in range(800):
            before, after = chooser.choices(_WORDS, k=60), chooser.choices(_WORDS, k=60)
            text = " ".join([*before, _PAYLOADS[number % len(_PAYLOADS)], *after])
            lines.write(json.dumps({"text": text}) + "\n")


@pytest.fixture(scope="module")
def hostile_run(workbench_server: Server) -> Run:
    """A finished run on a corpus full of markup."""
    corpus = workbench_server.data_dir / "hostile.jsonl"
    _write_corpus(corpus)
    name = "<script>window.harmed = true</script>"
    return workbench_server.train_small_run(name, dataset=str(corpus))


@pytest.mark.parametrize("address", ["/", "/run?id={id}", "/features?id={id}"])
def test_a_run_whose_name_is_a_script_is_shown_under_that_name(
    page: Page, workbench_server: Server, hostile_run: Run, address: str
) -> None:
    page.goto(workbench_server.url + address.format(id=hostile_run.id))
    expect(page.get_by_text("<script>window.harmed = true</script>").first).to_be_visible()
    assert page.evaluate("window.harmed") is None


@pytest.mark.parametrize(
    ("text", "markup"), [("script", "<"), ("onerror", "<"), ("javascript", "](")]
)
def test_a_document_that_contains_markup_is_shown_as_text(
    page: Page, workbench_server: Server, hostile_run: Run, text: str, markup: str
) -> None:
    query = f"id={hostile_run.id}&q={quote(text)}&match=fold"
    page.goto(f"{workbench_server.url}/lookup?{query}")
    page.locator("table.lookup a.wb-name").first.click()
    contexts = page.locator(".wb-contexts").first
    expect(contexts).to_contain_text(text)
    assert markup in contexts.inner_text()
    assert page.evaluate("window.harmed") is None
    assert page.locator(".wb-contexts :is(script, img, a)").count() == 0
