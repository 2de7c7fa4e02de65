"""Times the main workflow: start a run, watch it, browse features, look up tokens.

    python benchmarks/main_job.py                       # preset tiny, a server and a real browser
    python benchmarks/main_job.py --preset quick-test

Starts `sae-workbench up` with an empty data folder, drives Chromium through the pages, and queries
the REST API. Prints one table: click to first point, the run's duration and final metrics, first
paint, feature to feature in the browser, lookups over REST. Needs the `dev` extra and Chromium.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
from _common import parser, seconds, serving, wait_for
from playwright.sync_api import Page, sync_playwright

TOKENS = ["import", "self", " return", "the", ".", "yield from", "zzzz"]


def click_start(page: Page, base: str, preset: str) -> str:
    """Open the launch page and click Start; returns the run's id."""
    page.goto(f"{base}/launch?preset={preset}")
    button = page.get_by_role("button", name="Start training")
    button.wait_for()
    page.get_by_text("steps.").first.wait_for()
    button.click()
    page.wait_for_url("**/run?id=*")
    return page.url.split("id=")[1].split("&")[0]


def feature_to_feature(page: Page, base: str, run: str, navigations: int) -> list[float]:
    """Seconds from pressing the right arrow until the next feature is shown."""
    page.goto(f"{base}/feature?id={run}&index=100")
    page.get_by_role("heading", name="Feature 100").wait_for()
    times: list[float] = []
    for number in range(101, 101 + navigations):
        page.wait_for_timeout(300)
        began = time.perf_counter()
        page.keyboard.press("ArrowRight")
        page.get_by_role("heading", name=f"Feature {number}", exact=True).wait_for()
        times.append(time.perf_counter() - began)
    return times


def first_paints(page: Page, addresses: dict[str, tuple[str, str]]) -> dict[str, float]:
    """Seconds from opening a cold address to its first useful content."""
    times: dict[str, float] = {}
    for name, (address, selector) in addresses.items():
        began = time.perf_counter()
        page.goto(address)
        page.locator(selector).first.wait_for()
        times[name] = time.perf_counter() - began
    return times


def lookups(api: httpx.Client, run: str, repeats: int) -> list[float]:
    def ask(token: str) -> None:
        api.get(f"runs/{run}/lookup", params={"text": token}).raise_for_status()

    return [seconds(lambda t=token: ask(t)) for _ in range(repeats) for token in TOKENS]


def p50_p95(times: list[float], digits: int) -> str:
    """Median and 95th percentile in milliseconds."""
    return " / ".join(f"{1e3 * t:.{digits}f}" for t in np.percentile(times, [50, 95]))


def end_runs(base: str) -> None:
    """Stop unfinished runs, so that a failed measurement leaves no job behind."""
    api = httpx.Client(base_url=f"{base}/api/")
    for run in api.get("runs").json()["items"]:
        if run["ended_at"] is None:
            api.post(f"runs/{run['id']}/stop", params={"force": True})
    wait_for(lambda: all(r["ended_at"] for r in api.get("runs").json()["items"]), 60)


def measure(base: str, preset: str, navigations: int) -> dict[str, str]:
    api = httpx.Client(base_url=f"{base}/api/", timeout=60)
    table: dict[str, str] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        run = click_start(page, base, preset)
        clicked = time.perf_counter()

        def points() -> int:
            return api.get(f"runs/{run}/metrics").json()["total_points"]

        wait_for(points, 300)
        table["click to first point, s"] = f"{time.perf_counter() - clicked:.1f}"
        page.goto("about:blank")  # without a page open, so that the run is timed alone

        def ended() -> bool:
            return api.get(f"runs/{run}").json()["ended_at"] is not None

        wait_for(ended, 1800, every=2)  # rarely, because polling slows the run down
        lasted = time.perf_counter() - clicked
        table["click to end, index included, s"] = f"{lasted:.1f}"
        described = api.get(f"runs/{run}").json()
        table["status"] = described["status"]
        for name in ("eval_fvu", "eval_l0", "frac_alive", "ce_delta", "ce_loss_score"):
            table[name] = f"{described['metrics'][name]:.4f}"
        snapshots = api.get(f"runs/{run}/snapshots").json()
        early = sum(not s["final"] for s in snapshots)
        table["snapshots before the end"] = str(early)
        built = re.findall(
            r"indexed the features .* in ([\d.]+) s", api.get(f"runs/{run}/log").text
        )
        building = sum(map(float, built[:early]))
        table["building those, s, of the whole run"] = f"{building:.1f}, {building / lasted:.1%}"

        cold = first_paints(
            page,
            {
                "runs": (f"{base}/", "text=Created"),
                "run": (f"{base}/run?id={run}", "text=Held-out FVU"),
                "features": (f"{base}/features?id={run}", "text=Density"),
                "feature": (f"{base}/feature?id={run}&index=7", "text=Top activations"),
                "lookup": (f"{base}/lookup?id={run}&q=import", "th:has-text('Recall')"),
            },
        )
        for name, taken in cold.items():
            table[f"first useful paint, {name}, s"] = f"{taken:.2f}"
        steps = feature_to_feature(page, base, run, navigations)
        table[f"feature to feature, {navigations} times, p50 / p95, ms"] = p50_p95(steps, 0)
        browser.close()
    table["lookup over REST, p50 / p95, ms"] = p50_p95(lookups(api, run, 20), 1)
    return table


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--preset", default="tiny")
    arguments.add_argument("--navigations", type=int, default=50)
    options = arguments.parse_args()
    command = [Path(sys.executable).with_name("sae-workbench"), "up"]
    with serving(command) as (base, _):
        try:
            table = measure(base, options.preset, options.navigations)
        finally:
            end_runs(base)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    described = f"{os.cpu_count()} cores, {platform.machine()}, {platform.python_version()}"
    print(f"preset {options.preset}, {described}, commit {commit}")
    for name, value in table.items():
        print(f"{name:52s} {value}")


if __name__ == "__main__":
    main()
