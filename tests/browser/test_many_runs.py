"""Many runs in a real browser: queued and moved, compared, swept."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from backend import store
from backend.processes import ProcessId, start_of
from backend.settings import Settings
from backend.store.database import open_database
from sae_engine.presets import resolve_config
from sae_engine.schema.records import MetricsRecord
from tests.browser.server import Server, serving, wait_until

pytestmark = pytest.mark.timeout(600)

NAMES = ("narrow", "middle", "wide")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that knows three finished runs, of k 8, 16 and 32, and a long one, behind which all
    others wait: its process does nothing.
    """
    data_dir = tmp_path_factory.mktemp("data")
    sleeping = subprocess.Popen(["sleep", "600"], start_new_session=True)
    with (
        open_database(Settings(data_dir=data_dir).resolved_database_url) as database,
        database.writing() as session,
    ):
        for number, name in enumerate(NAMES):
            k = 8 * 2**number
            config = resolve_config("quick-test", {"name": name, "sae": {"k": k}})
            row = store.add_run(session, config=config, status="finished")
            held_out = {"eval_l0": float(k), "eval_fvu": 0.3 - number / 10}
            row.metrics = json.dumps(held_out)
            measured = [
                MetricsRecord(step=s, tokens=s, time=s, values={"fvu": 1 / s, **held_out})
                for s in (1, 2, 3)
            ]
            store.add_metrics(session, row.id, measured)
        config = resolve_config("quick-test", {"name": "long"})
        store.add_run(session, config=config, status="running", job="long").slot = "cpu"
        store.take_over(session, "long", ProcessId(sleeping.pid, start_of(sleeping.pid)))
    environment = pytest.MonkeyPatch()
    environment.setenv("SAE_WORKBENCH_DEVICES", "cpu")
    try:
        with serving(data_dir) as server:
            yield server
            for run in server.runs():
                if run.status == "queued":
                    httpx.post(f"{server.url}/api/runs/{run.id}/stop", trust_env=False)
            sleeping.kill()
            sleeping.wait()
    finally:
        environment.undo()
        sleeping.kill()
        sleeping.wait()


def names_of(server: Server, status: str) -> list[str]:
    return [run.name for run in server.runs() if run.status == status]


def start(page: Page, server: Server, name: str, button: str = "Start training") -> None:
    """Fill in a name on the launch page that is open, and click twice, as impatient people do."""
    boxes = page.locator('[class*="st-key-url-name"] input')
    box = boxes.filter(visible=True).first  # a page that is being replaced keeps a hidden copy
    box.fill(name)
    box.press("Enter")
    expect(page.locator("code", has_text=f"--name {name}").first).to_be_visible()
    page.locator(".st-key-start button", has_text=button).dblclick()


def queue_row(page: Page, name: str) -> Locator:
    return page.locator("table.queue tbody tr", has_text=name)


def test_runs_are_queued_moved_removed_retried_and_cloned(page: Page, server: Server) -> None:
    for name in ("one", "two"):
        page.goto(f"{server.url}/launch?preset=quick-test")
        start(page, server, name)
        page.wait_for_url(re.compile(r"/run\?.*id="))
        expect(page.locator(".wb-progressline .wb-badge.queued")).to_be_visible()
    assert sorted(names_of(server, "queued")) == ["one", "two"]
    expect(page.locator(".wb-place")).to_contain_text("2nd in the queue.")
    expect(page.locator(".wb-place")).to_contain_text("in use by 'long'")
    page.get_by_role("button", name="Move to front").click()
    expect(page.locator(".wb-place")).to_contain_text("First in the queue.")

    page.get_by_role("link", name="System", exact=True).click()
    expect(page.locator("table.slots")).to_contain_text("long")
    expect(page.locator("table.queue tbody tr").first).to_contain_text("two")
    queue_row(page, "two").get_by_role("button", name="Remove from queue").click()
    expect(queue_row(page, "two")).to_have_count(0)
    wait_until(lambda: names_of(server, "stopped") == ["two"], seconds=30, what="two should stop")

    page.get_by_role("link", name="Runs", exact=True).click()
    page.locator("table.runs").get_by_role("link", name="two", exact=True).click()
    page.get_by_role("button", name="Retry").click()
    expect(page.locator(".wb-place")).to_contain_text("2nd in the queue.")
    page.get_by_role("link", name="Clone").click()
    expect(page.get_by_text("Starts from the settings of two.")).to_be_visible()
    start(page, server, "three")
    page.wait_for_url(re.compile(r"/run\?.*id="))
    expect(page.locator(".wb-about")).to_contain_text("from two")
    assert sorted(names_of(server, "queued")) == ["one", "three", "two"]


def test_runs_that_are_marked_are_compared_and_a_point_opens_its_run(
    page: Page, server: Server
) -> None:
    page.goto(f"{server.url}/?status=finished")
    for name in (*NAMES, "wide", "wide"):  # the last one is marked, unmarked, marked
        page.locator("table.runs tbody tr", has_text=name).locator(".wb-check").click()
    expect(page.locator(".wb-views")).to_contain_text("3 selected")
    page.get_by_role("link", name="Compare").click()
    expect(page.locator("tr", has_text="sae.k").first).to_contain_text("81632")
    expect(page.locator(".wb-key .wb-keyed")).to_have_text(list(NAMES))
    points = page.locator(".st-key-pareto .point")
    expect(points).to_have_count(len(NAMES))
    with page.expect_download() as download:
        page.get_by_role("button", name="Curves").click()
    assert len(download.value.path().read_text("utf-8").splitlines()) == 1 + 3 * len(NAMES)
    points.nth(1).scroll_into_view_if_needed()
    box = points.nth(1).bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.get_by_role("heading", name="middle", exact=True)).to_be_visible()


def test_a_sweep_is_started_watched_and_stopped(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/launch?preset=quick-test")
    page.get_by_text("Sweep: try several values").click()
    values = page.get_by_role("textbox", name="Values to try")
    values.fill("sae.k = 8, 16\ntrain.lr = 1e-4, 3e-4")
    values.press("Control+Enter")
    start(page, server, "trial", "Start 4 runs")
    page.wait_for_url(re.compile(r"/sweep\?.*id="))
    rows = page.locator("table.members tbody tr")
    expect(rows).to_have_count(4)
    expect(rows.nth(1)).to_contain_text("trial k=8 lr=0.0003")
    page.get_by_role("button", name="Stop all").click()
    expect(page.locator("table.members .wb-badge.stopped")).to_have_count(4)
    rows.nth(0).locator("a.wb-name").click()
    expect(page.get_by_role("heading", name="trial k=8 lr=0.0001", exact=True)).to_be_visible()
    page.locator("a.wb-sweep").click()
    expect(rows).to_have_count(4)
