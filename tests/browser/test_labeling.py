"""Labels are made from the features page, with a language model served on loopback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from backend import store
from backend.settings import Settings
from backend.store.database import open_database
from sae_engine.presets import resolve_config
from sae_engine.schema.records import SnapshotRecord
from tests.backend.fake_endpoint import MODEL, Endpoint, endpoint
from tests.browser.server import Server, serving
from tests.sae_engine.features.index_reference import build, random_case

pytestmark = pytest.mark.timeout(600)


def add_run(data_dir: Path) -> str:
    """A finished run with an index, without training one."""
    settings = Settings(data_dir=data_dir)
    with (
        open_database(settings.resolved_database_url) as database,
        database.writing() as session,
    ):
        config = resolve_config("quick-test", {"name": "indexed"})
        run_id = store.add_run(session, config=config, status="finished").id
        record = SnapshotRecord(step=7, tokens=1000, index_tokens=6000, seconds=0.1, final=True)
        store.add_snapshot(session, run_id, record)
    case = random_case(3, num_tokens=6000, k=2, d_sae=300, ids=range(60, 250), num_rows=40)
    build(settings.run_folder(run_id).path, case, step=7)
    return run_id


@contextmanager
def labeling_server(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Server, Endpoint]]:
    with endpoint() as served:
        monkeypatch.setenv("SAE_WORKBENCH_LABELS_BASE_URL", served.url)
        monkeypatch.setenv("SAE_WORKBENCH_LABELS_MODEL", MODEL)
        with serving(data_dir) as server:
            yield server, served


def test_labels_are_estimated_made_shown_and_a_labeling_cancelled(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = add_run(tmp_path)
    with labeling_server(tmp_path, monkeypatch) as (server, served):
        page.goto(f"{server.url}/features?id={run_id}&sort=max_activation")
        page.locator(".st-key-label-features button").first.click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text(f"{MODEL} labels 50 features")
        assert served.asked == []
        number = dialog.locator(".st-key-label-limit input")
        number.fill("6")
        number.press("Enter")
        expect(dialog).to_contain_text(f"{MODEL} labels 6 features")
        dialog.get_by_role("button", name="Start").click()
        dialog.get_by_role("button", name="Show labels").click()
        expect(dialog).to_be_hidden()
        first = page.locator("table.features tbody tr").first
        expect(first.locator(".wb-score")).to_have_text(re.compile(r"P .*% · R .*%"))
        expect(page.locator(".wb-score")).to_have_count(6)
        first.locator("a.wb-name").click()
        expect(page.locator(".wb-origin")).to_contain_text(f"Proposed by {MODEL} just now")

        served.gate.clear()
        page.go_back()
        page.locator(".st-key-label-features button").first.click()
        expect(dialog).to_contain_text("The last labeling has finished.")
        dialog.get_by_role("button", name="Start").click()
        dialog.get_by_role("button", name="Cancel").click()
        expect(dialog).to_contain_text("The last labeling was cancelled.")
