"""A real Ray cluster: several nodes on loopback addresses of this machine, for tests to disturb."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import psutil

from backend.jobs.ray_api import ClusterError, RayApi
from tests.chaos.workbench import wait_until

TOKEN = "chaos-ray-token"
HEAD_PORT, DASHBOARD_PORT = 26379, 28265
RAY = Path(sys.executable).with_name("ray")
QUICK_CHECKS = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}
"""Ray takes 64 s to notice that a node does not answer; these make it about 20."""
START_SECONDS = 600.0
"""On a machine with other work; otherwise a node takes ten."""


def is_installed() -> bool:
    return RAY.exists()


class RayNode:
    """One `ray start --block` with its processes."""

    def __init__(
        self, name: str, number: int, folder: Path, environment: Mapping[str, str]
    ) -> None:
        """The first node is the head, which trains nothing."""
        self.name = name
        self._log = folder / f"ray-{name}.log"
        first_port = 26400 + 100 * number
        common = [
            "--node-ip-address", f"127.0.0.{number + 2}", "--node-name", name, "--block",
            "--object-store-memory", "80000000", "--disable-usage-stats",
            "--node-manager-port", str(first_port), "--object-manager-port", str(first_port + 1),
            "--runtime-env-agent-port", str(first_port + 2),
            "--dashboard-agent-listen-port", str(first_port + 3),
            "--dashboard-agent-grpc-port", str(first_port + 4),
            "--metrics-export-port", str(first_port + 5),
            "--min-worker-port", str(first_port + 10), "--max-worker-port", str(first_port + 60),
        ]  # fmt: skip
        head = [
            "--head", "--port", str(HEAD_PORT), "--num-cpus", "0", "--num-gpus", "0",
            "--dashboard-host", "127.0.0.1", "--dashboard-port", str(DASHBOARD_PORT),
            "--temp-dir", str(folder / "ray"),
        ]  # fmt: skip
        other = ["--address", f"127.0.0.2:{HEAD_PORT}", "--num-cpus", "1", "--num-gpus", "1"]
        self._command = [str(RAY), "start", *common, *(other if number else head)]
        self.environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=self.environment, start_new_session=True,
            )  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        assert self._process is not None
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        return []

    def raylet(self) -> psutil.Process:
        [raylet] = [each for each in self.processes() if each.name() == "raylet"]
        return raylet

    def kill(self) -> None:
        """End the whole machine, so to speak."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self._process is not None:
            self._process.wait(timeout=60)

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None


class RayCluster:
    """A head and two nodes with one CPU and one pretended GPU each."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.url = f"http://127.0.0.1:{DASHBOARD_PORT}"
        self.api = RayApi(self.url, TOKEN)
        settings = {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_JOB_STOP_WAIT_TIME_S": "35", **QUICK_CHECKS, **environment,
        }  # fmt: skip
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment = {**os.environ, **settings, "PATH": path}
        self.nodes = [
            RayNode(name, number, folder, self._environment)
            for number, name in enumerate(("head", "a", "b"))
        ]

    def node(self, name: str) -> RayNode:
        return next(node for node in self.nodes if node.name == name)

    def start_missing(self) -> None:
        """Start the nodes that do not run, and wait until each is in the cluster. On a busy machine
        Ray gives a node up that does not start within half a minute, so it is started again.
        """

        def is_in(node: RayNode) -> bool:
            if not node.is_running():
                node.start()
            return node.name in self.alive()

        head, *others = self.nodes
        wait_until(lambda: is_in(head), "the head", START_SECONDS)
        wait_until(lambda: {is_in(node) for node in others} == {True}, "the nodes", START_SECONDS)

    def alive(self) -> set[str]:
        with suppress(ClusterError):
            return {node.name for node in self.api.nodes()}
        return set()


@contextmanager
def running_ray(folder: Path, environment: Mapping[str, str]) -> Iterator[RayCluster]:
    """A cluster while the block runs."""
    cluster = RayCluster(folder, environment)
    with ExitStack() as ending:
        ending.callback(cluster.api.close)
        for node in cluster.nodes:
            ending.callback(lambda node=node: node.is_running() and node.kill())
        cluster.start_missing()
        yield cluster


def frozen(processes: list[psutil.Process]) -> Callable[[], None]:
    """Stop processes; the result lets them go on."""
    for process in processes:
        process.send_signal(signal.SIGSTOP)

    def go_on() -> None:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)

    return go_on


def problem_of(url: str, token: str | None) -> str:
    """Why a cluster cannot be used."""
    with closing(RayApi(url, token)) as api:
        try:
            api.nodes()
        except ClusterError as error:
            return str(error)
    return ""
