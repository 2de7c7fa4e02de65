"""A small server on loopback that answers as the dashboard of a Ray cluster does, and runs jobs as
processes of this machine; what differs from a real cluster is up to the test.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "ray-secret"
MIB = 2**20


class Started:
    """A job and its process."""

    def __init__(self, body: Mapping[str, Any], environment: Mapping[str, str], log: Path) -> None:
        self.body = body
        self._log = log
        self.forced_status: str | None = None
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                body["entrypoint"], shell=True, start_new_session=True, env=environment,
                stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def info(self) -> dict[str, Any]:
        code = self.process.poll()
        status = "RUNNING" if code is None else "SUCCEEDED" if code == 0 else "FAILED"
        log = self._log.read_text()
        message = f"Job entrypoint command failed with exit code {code}, last logs:\n{log}"
        if self.forced_status is not None:
            status, code, message = self.forced_status, None, "The node of the job died."
        return {"status": status, "message": message, "driver_exit_code": code}

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class FakeCluster:
    """The nodes, the jobs so far, and what is wrong with the cluster."""

    def __init__(self, folder: Path) -> None:
        self.url = ""
        self.version = "2.60.0"
        self.is_open = False
        self.is_away = False
        self.nodes: dict[str, dict[str, float]] = {"a": {"CPU": 1}, "b": {"CPU": 1}}
        self.gpus: dict[str, list[dict[str, Any]]] = {}
        self.environments: dict[str, dict[str, str]] = {}
        """Variables of each node's processes, besides those of this process."""
        self.jobs: dict[str, Started] = {}
        self._folder = folder

    def answer(self, method: str, path: str, token: str, body: Any) -> tuple[int, Any]:
        """Status and content of an answer."""
        if self.is_away:
            return 503, "No available agent to submit job, please try again later."
        if not self.is_open and token != f"Bearer {TOKEN}":
            return (403, "Forbidden") if token else (401, "Unauthorized")
        if path == "/api/version":
            return 200, {"ray_version": self.version}
        if path == "/nodes?view=summary":
            return 200, {"result": True, "data": {"summary": [*map(self._node, self.nodes)]}}
        if method == "POST" and path == "/api/jobs/":
            return self._submit(body)
        name = path.removeprefix("/api/jobs/").removesuffix("/stop")
        if name not in self.jobs:
            return 404, f"Job {name} does not exist"
        if path.endswith("/stop"):
            self.jobs[name].signal(signal.SIGTERM)
            return 200, {"stopped": True}
        return 200, self.jobs[name].info()

    def _node(self, name: str) -> dict[str, Any]:
        gpus = [{"index": i, **gpu} for i, gpu in enumerate(self.gpus.get(name, []))]
        raylet = {
            "nodeId": f"id-of-{name}", "nodeName": name, "state": "ALIVE",
            "resourcesTotal": self.nodes[name],
        }  # fmt: skip
        return {"raylet": raylet, "gpus": gpus, "mem": [8 * MIB, 6 * MIB, 25.0, 2 * MIB]}

    def _submit(self, body: Mapping[str, Any]) -> tuple[int, Any]:
        name = body["submission_id"]
        if name in self.jobs:
            return 500, f"Traceback\nValueError: Job {name} already exists."
        node = body["entrypoint_label_selector"]["ray.io/node-id"].removeprefix("id-of-")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        if body["entrypoint_num_gpus"]:
            environment["CUDA_VISIBLE_DEVICES"] = "5"
        environment |= self.environments.get(node, {})
        self.jobs[name] = Started(body, environment, self._folder / f"{name}.log")
        return 200, {"submission_id": name}

    def job_on(self, node: str) -> Started:
        """The newest job on a node."""
        label = f"id-of-{node}"
        on_node = [
            job
            for job in self.jobs.values()
            if job.body["entrypoint_label_selector"]["ray.io/node-id"] == label
        ]
        return on_node[-1]


@contextmanager
def running_cluster(folder: Path) -> Iterator[FakeCluster]:
    """A cluster while the block runs; its jobs are killed afterwards."""
    cluster = FakeCluster(folder)

    class Handler(BaseHTTPRequestHandler):
        def handle_request(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            token = self.headers.get("Authorization", "")
            status, content = cluster.answer(self.command, self.path, token, body)
            text = content if isinstance(content, str) else json.dumps(content)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = handle_request  # noqa: N815

        def log_message(self, format: str, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    cluster.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield cluster
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        for job in cluster.jobs.values():
            job.signal(signal.SIGKILL)
            job.process.wait()
