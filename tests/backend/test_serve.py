"""`sae-workbench up` as a process."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import httpx
import pytest

from backend import store
from backend.serve import listen
from backend.settings import DATABASE, Settings
from backend.store.database import open_database
from sae_engine.errors import UserError
from sae_engine.presets import resolve_config
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
def up(tmp_path: Path, *, before: Sequence[str] = (), **environment: str) -> Iterator[Up]:
    """`before` is a command that runs the server's command line."""
    output = tmp_path / "output.txt"
    environment = {**os.environ, "SAE_WORKBENCH_DATA_DIR": str(tmp_path / "data"), **environment}
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*before, *UP], stdout=file, stderr=subprocess.STDOUT, env=environment
        )
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


def test_pages_and_charts_are_served_below_a_path(tmp_path: Path) -> None:
    with up(tmp_path, SAE_WORKBENCH_BASE_PATH="/sae") as server:
        for prefix in ("/sae", ""):
            assert "<title>" in server.http.get(f"{prefix}/").text
            assert server.http.get(f"{prefix}/_stcore/health").is_success
            chart = server.http.get(f"{prefix}/app/static/plotly-basic.min.js")
            assert "javascript" in chart.headers["content-type"]
            assert "/sae/api/openapi.json" in server.http.get(f"{prefix}/api/docs").text
        assert "<title>" in server.http.get("/sae/run").text


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


FEW_FILES = ("bash", "-c", 'ulimit -n 330; exec "$@"', "few-files")
"""Fewer files than the connections below."""
FLOOD = 400


def flood(server: Up, open_connections: ExitStack, sent: bytes) -> None:
    url = server.http.base_url
    for _ in range(FLOOD):
        connection = socket.create_connection((url.host, url.port or 80), timeout=10)
        open_connections.enter_context(connection)
        connection.sendall(sent)


def queued_forever(tmp_path: Path) -> str:
    """The id of a run on a device that a server with `NO_DEVICE` does not have."""
    (tmp_path / "data").mkdir()
    with open_database(f"sqlite:///{tmp_path / 'data' / DATABASE}") as database:
        config = resolve_config("quick-test", {"model": {"device": "cpu"}})
        with database.writing() as session:
            return store.add_run(session, config=config).id


NO_DEVICE = {"SAE_WORKBENCH_DEVICES": "cuda:7"}


def test_more_connections_than_files_neither_stop_the_server_nor_fill_its_log(
    tmp_path: Path,
) -> None:
    run_id = queued_forever(tmp_path)
    kinds = {
        "silent": "",
        "half a request": "GET /api/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ",
        "kept alive": "GET /api/health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        "event streams": f"GET /api/runs/{run_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    }
    with up(tmp_path, before=FEW_FILES, **NO_DEVICE) as server:
        for kind, sent in kinds.items():
            with ExitStack() as open_connections:
                flood(server, open_connections, sent.encode())
                wait_for(lambda: answers(server, "/api/health"))
                assert answers(server, "/api/runs"), kind
        assert server.interrupt() == 0
        assert len(server.printed()) < 4_000, server.printed()
        assert "Traceback" not in server.printed()


def test_a_server_with_open_event_streams_ends_when_told(tmp_path: Path) -> None:
    run_id = queued_forever(tmp_path)
    command = [sys.executable, "-m", "uvicorn", "backend.app:app", "--port", "0"]
    environment = {**os.environ, **NO_DEVICE, "SAE_WORKBENCH_DATA_DIR": str(tmp_path / "data")}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stderr is not None
        url = next(
            found[0] for line in process.stderr if (found := re.findall(r"http://\S+", line))
        )
        with httpx.stream("GET", f"{url}/api/runs/{run_id}/events", trust_env=False) as stream:
            assert stream.status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) in (0, -signal.SIGTERM)
        process.stderr.read()


def answers(server: Up, path: str) -> bool:
    url = server.http.base_url.join(path)
    try:
        return httpx.get(url, trust_env=False, timeout=10).is_success
    except httpx.TransportError:
        return False


def test_of_two_servers_started_at_once_on_a_port_one_is_refused(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, port=0)
    with closing(listen(settings)) as first:
        port = first.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} .*--port"):
            listen(settings.model_copy(update={"port": port}))
