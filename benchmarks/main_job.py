"""The main job as a person does it, timed: start, watch, browse, look up.

    python benchmarks/main_job.py                       # preset tiny, a server and a real browser
    python benchmarks/main_job.py --preset quick-test

Starts `sae-workbench up` on a free port with an empty data folder, drives Chromium through the
pages and asks the REST API. Prints one table: click to first point, the run's length and what it
reached, first paint, feature to feature in the browser, lookups over REST. Needs the `dev` extra
and Chromium.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page, sync_playwright

TOKENS = ["import", "self", " return", "the", ".", "yield from", "zzzz"]


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def wait_for(condition: Callable[[], Any], seconds: float, *, every: float = 0.25) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(every)
    raise TimeoutError("the condition did not become true in time")


def click_start(page: Page, base: str, preset: str) -> str:
    """Open the launch page, click Start; returns the run's id."""
    page.goto(f"{base}/launch?preset={preset}")
    button = page.get_by_role("button", name="Start training")
    button.wait_for()
    page.get_by_text("steps.").first.wait_for()
    button.click()
    page.wait_for_url("**/run?id=*")
    return page.url.split("id=")[1].split("&")[0]


def feature_to_feature(page: Page, base: str, run: str, navigations: int) -> list[float]:
    """Seconds from a press of the right arrow until the next feature's contexts are shown."""
    page.goto(f"{base}/feature?id={run}&index=100")
    page.get_by_role("heading", name="Feature 100").wait_for()
    seconds: list[float] = []
    for number in range(101, 101 + navigations):
        page.wait_for_timeout(300)
        began = time.perf_counter()
        page.keyboard.press("ArrowRight")
        page.get_by_role("heading", name=f"Feature {number}", exact=True).wait_for()
        seconds.append(time.perf_counter() - began)
    return seconds


def first_paints(page: Page, addresses: dict[str, tuple[str, str]]) -> dict[str, float]:
    """Seconds from opening a cold address to its first useful content."""
    seconds: dict[str, float] = {}
    for name, (address, selector) in addresses.items():
        began = time.perf_counter()
        page.goto(address)
        page.locator(selector).first.wait_for()
        seconds[name] = time.perf_counter() - began
    return seconds


def lookups(api: httpx.Client, run: str, repeats: int) -> list[float]:
    seconds: list[float] = []
    for _ in range(repeats):
        for token in TOKENS:
            began = time.perf_counter()
            api.get(f"runs/{run}/lookup", params={"text": token}).raise_for_status()
            seconds.append(time.perf_counter() - began)
    return seconds


def end_runs(base: str) -> None:
    """Stop what still runs, so that a measurement that failed leaves no job behind."""
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
        page.goto("about:blank")  # nobody watches: the run is timed alone

        def ended() -> bool:
            return api.get(f"runs/{run}").json()["ended_at"] is not None

        wait_for(ended, 1800, every=2)  # asking costs the run time
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
        seconds = sum(map(float, built[:early]))
        table["building those, s, of the whole run"] = f"{seconds:.1f}, {seconds / lasted:.1%}"

        cold = first_paints(
            page,
            {
                "runs": (f"{base}/", "text=Created"),
                "run": (f"{base}/run?id={run}", "text=Held-out FVU"),
                "features": (f"{base}/features?id={run}", "text=Density"),
                "feature": (f"{base}/feature?id={run}&index=7", "text=Top activations"),
                "lookup": (f"{base}/lookup?id={run}&q=import", "text=positions"),
            },
        )
        for name, seconds in cold.items():
            table[f"first useful paint, {name}, s"] = f"{seconds:.2f}"
        steps = feature_to_feature(page, base, run, navigations)
        table[f"feature to feature, {navigations} times, p50 / p95, ms"] = (
            f"{1e3 * statistics.median(steps):.0f} / {1e3 * percentile(steps, 0.95):.0f}"
        )
        browser.close()
    asked = lookups(api, run, 20)
    table["lookup over REST, p50 / p95, ms"] = (
        f"{1e3 * statistics.median(asked):.1f} / {1e3 * percentile(asked, 0.95):.1f}"
    )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--navigations", type=int, default=50)
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as data:
        server = subprocess.Popen(
            [Path(sys.executable).with_name("sae-workbench"), "up", "--port", str(port)],
            env=os.environ | {"SAE_WORKBENCH_DATA_DIR": data},
            stdout=subprocess.DEVNULL,
        )
        try:
            base = f"http://127.0.0.1:{port}"

            def healthy() -> bool:
                try:
                    return httpx.get(f"{base}/api/health").status_code == 200
                except httpx.TransportError:
                    return False

            wait_for(healthy, 60)
            table = measure(base, args.preset, args.navigations)
        finally:
            end_runs(base)
            server.terminate()
            server.wait()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    cores, python = os.cpu_count(), platform.python_version()
    print(f"preset {args.preset}, {cores} cores, {platform.machine()}, {python}, commit {commit}")
    for name, value in table.items():
        print(f"{name:52s} {value}")


if __name__ == "__main__":
    main()
