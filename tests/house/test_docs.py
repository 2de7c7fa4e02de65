"""The documents are accurate and their links resolve."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sae_engine.schema.config import ModelConfig
from sae_engine.schema.records import METRICS
from tests.house.repository import ROOT, tracked_files

_DOCUMENTS = [
    path for path in tracked_files() if path.suffix == ".md" and not (ROOT / path).is_symlink()
]
_RECORDS = sorted((ROOT / "docs/decisions").glob("*.md"))
_CONTRACT_TERMS = [
    *("queued", "running", "stopping", "finished", "stopped", "failed", "interrupted"),
    *("latent", "feature", "index", "snapshot", "density", "dead", "dense", "context", "interval"),
    *("recall", "precision", "f1", "lift", "lookup", "d_in", "d_sae", "site", "hook point"),
    *("fold", "exact", "prefix", "substring", "checkpoint", "preset", "logits", "neighbor"),
]


def _anchors(document: Path) -> set[str]:
    """Anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("document", _DOCUMENTS, ids=str)
def test_every_link_inside_the_repository_leads_to_a_file_and_a_heading(document: Path) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / document).read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / document).parent / name if name else ROOT / document
        assert file.exists(), f"{document} links to {target}"
        assert not anchor or anchor in _anchors(file), f"{document} links to {target}"


def test_decision_records_are_numbered_without_gaps() -> None:
    assert [int(path.name[:4]) for path in _RECORDS] == list(range(1, len(_RECORDS) + 1))


@pytest.mark.parametrize("record", _RECORDS, ids=lambda path: path.stem)
def test_a_decision_record_fits_on_a_page_and_has_its_four_parts(record: Path) -> None:
    text = record.read_text("utf-8")
    assert len(text.splitlines()) <= 40
    parts = re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE)
    assert parts == ["Context", "Decision", "Consequences", "Alternatives"]


def _glossary_terms() -> set[str]:
    """The words of the glossary's first columns and the ways to match, in lower case."""
    glossary = (ROOT / "docs/glossary.md").read_text("utf-8")
    columns = re.findall(r"^\| ([^|]+) \|", glossary, re.MULTILINE)
    terms = {term.strip().strip("`").lower() for column in columns for term in column.split(",")}
    return terms | set(re.findall(r"`(fold|exact|prefix|substring)`", glossary))


@pytest.mark.parametrize("term", [*METRICS, *_CONTRACT_TERMS])
def test_the_glossary_explains(term: str) -> None:
    assert term in _glossary_terms()


def test_concepts_name_every_site() -> None:
    sites = ModelConfig.model_json_schema()["properties"]["site"]["enum"]
    concepts = (ROOT / "docs/concepts.md").read_text("utf-8")
    assert all(f"`{site}`" in concepts for site in sites)
