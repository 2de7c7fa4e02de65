"""The HTTP API of a Ray cluster: its nodes, and jobs that run a command on one of them.

Used by `ray_executor`. Nothing here imports Ray: the cluster may run another version than any that
is installed here, and a server without Ray can use it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

import httpx
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from sae_engine.errors import UserError

TIMEOUT_SECONDS = 5.0
REFUSALS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
OLDEST = (2, 60)
"""The first version of Ray that is accepted: it can require a token."""


class ClusterError(UserError):
    """Why the cluster cannot be used, as one sentence."""


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", alias_generator=to_camel)


class NodeGpu(_Answer):
    """A GPU as the node's NVIDIA driver sees it; memory in MiB."""

    index: int
    name: str = ""
    utilization_gpu: float | None = None
    memory_used: float = 0
    memory_total: float = 0


class _Raylet(_Answer):
    node_id: str
    node_name: str
    state: str
    resources_total: dict[str, float] = Field(default_factory=dict)


class Node(_Answer):
    """A machine of the cluster."""

    raylet: _Raylet
    gpus: list[NodeGpu] = Field(default_factory=list[NodeGpu])
    mem: list[float] = Field(default_factory=list[float])
    """Total and available bytes of memory, then others."""

    @property
    def name(self) -> str:
        return self.raylet.node_name

    def amount(self, resource: str) -> int:
        """How many of a resource, such as `GPU`, the node offers."""
        return int(self.raylet.resources_total.get(resource, 0))


class _Summary(BaseModel):
    summary: list[dict[str, Any]]


class _Nodes(BaseModel):
    data: _Summary


class JobInfo(BaseModel):
    """A job as Ray sees it."""

    status: str
    """`PENDING`, `RUNNING`, `STOPPED`, `SUCCEEDED` or `FAILED`."""
    message: str | None = None
    driver_exit_code: int | None = None
    """Known only if Ray saw the process end by itself."""


class _Version(BaseModel):
    ray_version: str


class Submission(NamedTuple):
    """A command to run on one node."""

    job: str
    entrypoint: str
    node_id: str
    num_gpus: float


class RayApi:
    """A cluster at the URL of its dashboard."""

    def __init__(self, url: str, token: str | None) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._http = httpx.Client(base_url=self._url, timeout=TIMEOUT_SECONDS, trust_env=False)
        self._is_checked = False

    def nodes(self) -> Sequence[Node]:
        """The nodes that are alive, by name."""
        answer = self._ask("GET", "/nodes?view=summary")
        found = _Nodes.model_validate_json(answer.content).data.summary
        alive = [
            Node.model_validate(each) for each in found if each["raylet"].get("state") == "ALIVE"
        ]
        return sorted(alive, key=lambda node: node.name)

    def submit(self, submission: Submission) -> None:
        body = {
            "entrypoint": submission.entrypoint,
            "submission_id": submission.job,
            "entrypoint_num_gpus": submission.num_gpus,
            "entrypoint_label_selector": {"ray.io/node-id": submission.node_id},
        }
        self._ask("POST", "/api/jobs/", body)

    def job(self, name: str) -> JobInfo | None:
        """A job; None if the cluster does not know it."""
        answer = self._ask("GET", f"/api/jobs/{name}", may_be_missing=True)
        return None if answer.is_error else JobInfo.model_validate_json(answer.content)

    def stop(self, name: str) -> None:
        """Ask a job to end; Ray kills it if it does not."""
        self._ask("POST", f"/api/jobs/{name}/stop", may_be_missing=True)

    def close(self) -> None:
        self._http.close()

    def _ask(
        self, method: str, path: str, body: object = None, *, may_be_missing: bool = False
    ) -> httpx.Response:
        """Send a request; raises `ClusterError`."""
        if not self._is_checked:
            self._check()
        answer = self._send(method, path, body, {"Authorization": f"Bearer {self._token}"})
        if answer.is_error and not (may_be_missing and answer.status_code == HTTPStatus.NOT_FOUND):
            self._is_checked = False
            raise ClusterError(self._answered(answer))
        return answer

    def _send(
        self, method: str, path: str, body: object, headers: Mapping[str, str]
    ) -> httpx.Response:
        try:
            return self._http.request(method, path, json=body, headers=headers)
        except httpx.HTTPError as error:
            self._is_checked = False
            raise ClusterError(
                f"The Ray cluster at {self._url} cannot be reached "
                f"({error or type(error).__name__}); start it, or correct SAE_WORKBENCH_RAY_URL."
            ) from None

    def _answered(self, answer: httpx.Response) -> str:
        """A sentence with the last line of an answer, which of a traceback is the error."""
        last = answer.text.strip().rpartition("\n")[2][:200].rstrip(".")
        return f"The Ray cluster at {self._url} answered {answer.status_code} ({last})."

    def _check(self) -> None:
        """Raise `ClusterError` unless the cluster is recent, closed to strangers and open to us."""
        if self._token is None:
            raise ClusterError("Set SAE_WORKBENCH_RAY_TOKEN to the token of the Ray cluster.")
        stranger = self._send("GET", "/api/version", None, {})
        mine = stranger
        if stranger.status_code in REFUSALS:
            mine = self._send(
                "GET", "/api/version", None, {"Authorization": f"Bearer {self._token}"}
            )
            if mine.status_code in REFUSALS:
                raise ClusterError(
                    f"The Ray cluster at {self._url} refuses SAE_WORKBENCH_RAY_TOKEN; set it to "
                    "the RAY_AUTH_TOKEN that the cluster was started with."
                )
        if mine.is_server_error:
            raise ClusterError(self._answered(mine))
        version = _version(mine)
        if version is None:
            raise ClusterError(
                f"{self._url} is not the dashboard of a Ray cluster; correct SAE_WORKBENCH_RAY_URL."
            )
        if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
            raise ClusterError(
                f"The Ray cluster at {self._url} runs Ray {version}; use 2.60 or newer."
            )
        if mine is stranger:
            raise ClusterError(
                f"The Ray cluster at {self._url} lets anyone run commands; start it with "
                "RAY_AUTH_MODE=token and a RAY_AUTH_TOKEN."
            )
        self._is_checked = True


def _version(answer: httpx.Response) -> str | None:
    try:
        return _Version.model_validate_json(answer.content).ray_version
    except ValueError:
        return None
