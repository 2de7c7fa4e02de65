"""`sae-workbench up` as a process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.backend.conftest import wait_for

TOKEN = "let me in"
UP = [sys.executable, "-m", "backend.cli.main", "up", "--port", "0"]


class Up:
    """A running server and its output."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self._output = output
        wait_for(lambda: bool(self._urls()) or process.poll() is not None)
        assert self._urls(), self.printed()
        self.http = httpx.Client(base_url=self._urls()[0], trust_env=False, timeout=30)
        wait_for(self._answers)

    def printed(self) -> str:
        return self._output.read_text()

    def interrupt(self) -> int:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=30)

    def _urls(self) -> list[str]:
        return re.findall(r"http://[\w.]+:\d+", self.printed())

    def _answers(self) -> bool:
        try:
            return self.http.get("/api/health").is_success
        except httpx.TransportError:
            return False


@contextmanager
def up(tmp_path: Path, **environment: str) -> Iterator[Up]:
    output = tmp_path / "output.txt"
    environment = {**os.environ, "SAE_WORKBENCH_DATA_DIR": str(tmp_path / "data"), **environment}
    with output.open("wb") as file:
        process = subprocess.Popen(UP, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        server = Up(process, output)
        with closing(server.http):
            yield server
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_pages_and_api_share_a_port_and_ctrl_c_ends_the_server(tmp_path: Path) -> None:
    with up(tmp_path) as server:
        assert server.http.get("/api/runs").json() == {"items": [], "next_cursor": None, "total": 0}
        assert "<title>" in server.http.get("/").text
        assert server.http.get("/_stcore/health").is_success
        assert server.http.get("/api/docs").is_success
        assert server.http.get("/", headers={"Host": "evil.example"}).status_code == 403
        assert server.interrupt() == 0
        assert "Stopped." in server.printed()
        assert "Traceback" not in server.printed()


def test_with_a_token_api_and_pages_need_it(tmp_path: Path) -> None:
    with up(tmp_path, SAE_WORKBENCH_TOKEN=TOKEN) as server:
        assert server.http.get("/api/runs").status_code == 401
        page = server.http.get("/", follow_redirects=True)
        assert "Access token" in page.text
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert server.http.get("/api/runs", headers=bearer).is_success
        entered = server.http.post("/login", data={"token": TOKEN}, follow_redirects=True)
        assert entered.is_success
        assert "Access token" not in entered.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "SAE_WORKBENCH_TOKEN"),
        (["--host", "no.such.host.invalid"], "SAE_WORKBENCH_TOKEN"),
        (["--port", "99999"], "SAE_WORKBENCH_PORT = 99999"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    command = [*UP, "--data-dir", str(tmp_path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with up(tmp_path) as server:
        port = str(server.http.base_url.port)
        command = [*UP, "--data-dir", str(tmp_path), "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"port {port}" in done.stderr
    assert "--port" in done.stderr
