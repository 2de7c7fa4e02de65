"""The pages and the API below a path of nginx, configured as docs/containers.md says."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, Response, expect

from tests.browser.server import wait_until
from tests.browser.two_runs import serving_two_runs

_GUIDE = Path(__file__).parents[2] / "docs" / "containers.md"
_CONFIG = """
daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{ listen 127.0.0.1:{port}; {location} }}
}}
"""


@contextmanager
def _nginx(folder: Path, backend: str) -> Iterator[str]:
    """Its address, with the guide's `location` in front of `backend`."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        reason = "nginx is not installed"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    [location] = re.findall(r"```nginx\n(.*?)```", _GUIDE.read_text("utf-8"), re.DOTALL)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    location = location.replace("http://127.0.0.1:8501", backend)
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(folder=folder, port=port, location=location))
    process = subprocess.Popen([program, "-p", folder, "-c", config])
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _answers(url), seconds=20, what="nginx should answer")
        yield url
    finally:
        process.terminate()
        process.wait(20)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code > 0
    except httpx.TransportError:
        return False


def test_every_part_works_below_a_path(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAE_WORKBENCH_BASE_PATH", "/sae")
    proxy_folder, data_dir = tmp_path / "nginx", tmp_path / "data"
    proxy_folder.mkdir()
    data_dir.mkdir()
    failed: list[str] = []

    def note(response: Response) -> None:
        # From a page's own address, Streamlit tries which part of it is the path of the server.
        if response.status >= 400 and "/_stcore/" not in response.url:
            failed.append(f"{response.status} {response.url}")

    page.on("response", note)
    with (
        serving_two_runs(data_dir) as (server, (first, _)),
        _nginx(proxy_folder, server.url) as url,
    ):
        page.goto(f"{url}/sae/")
        page.get_by_role("link", name="first").first.click()
        expect(page).to_have_url(re.compile(rf"{re.escape(url)}/sae/run\?id={first}.*"))
        expect(page.locator(".js-plotly-plot .scatterlayer .trace").first).to_be_visible()
        page.goto(f"{url}/sae/map?id={first}")
        expect(page.locator(".st-key-map .js-plotly-plot")).to_be_visible()
        page.goto(f"{url}/sae/feature?id={first}&index=2")
        expect(page.locator(".wb-contexts").first).to_be_visible()
        page.goto(f"{url}/sae/api/docs")
        expect(page.locator(".opblock").first).to_be_visible()
        assert failed == []
        created = httpx.post(f"{url}/sae/api/runs", json={"preset": "none"}, trust_env=False)
        assert created.status_code == 422, created.text
        with httpx.stream("GET", f"{url}/sae/api/runs/{first}/events", trust_env=False) as events:
            assert events.status_code == 200
            assert next(events.iter_lines()).startswith(("event", "data", "id", ":"))
