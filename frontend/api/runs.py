"""Calls about runs: create, find, change, stop, resume, read."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import NamedTuple, TypedDict, Unpack

from frontend.api.connection import ApiProblem, Connection, run_path
from sae_engine.schema.features import SortOrder
from sae_engine.schema.machine import Environment
from sae_engine.schema.runs import (
    ImportCreate,
    MetricsEvent,
    MetricsSeries,
    Notice,
    Run,
    RunCreate,
    RunPage,
    RunPatch,
    RunSort,
    RunStatus,
    Snapshot,
    StatusEvent,
    Sweep,
    SweepCreate,
    TagCount,
)
from sae_engine.schema.saes import FoundSAE, PushCreate, Pushed

SILENCE_SECONDS = 60.0
PUSH_SECONDS = 1800.0
"""An SAE of several gigabytes is uploaded before the answer."""
RECONNECTS = 30
RECONNECT_SECONDS = 2.0

_EVENTS: dict[str, type[MetricsEvent | StatusEvent | Snapshot | Notice]] = {
    "metrics": MetricsEvent,
    "status": StatusEvent,
    "snapshot": Snapshot,
    "alert": Notice,
    "notice": Notice,
}


class RunQuery(TypedDict, total=False):
    """Which runs to list, and in which order."""

    status: RunStatus | Sequence[RunStatus] | None
    q: str | None
    group_id: str | None
    """The runs of one sweep."""
    archived: bool | None
    sort: RunSort | None
    order: SortOrder | None
    limit: int | None
    cursor: str | None


class RunEvent(NamedTuple):
    """One event of a run: `metrics`, `status`, `snapshot`, `alert` or `notice`."""

    name: str
    body: MetricsEvent | StatusEvent | Snapshot | Notice


class RunCalls(Connection):
    """Runs, and what they report."""

    def runs(self, *, tags: Sequence[str] = (), **query: Unpack[RunQuery]) -> RunPage:
        """One page of runs that have all `tags`, by default newest first.

        Sorted by a metric, the lowest come first unless `order` says otherwise.
        """
        return self._call(RunPage, "GET", "/runs", {"tag": tags, **query})

    def tags(self) -> list[TagCount]:
        """Every tag, most frequent first."""
        return self._call(list[TagCount], "GET", "/tags")

    def create_run(self, body: RunCreate, *, idempotency_key: str | None = None) -> Run:
        """Queue a run; sending the same key again returns the same run."""
        return self._call(Run, "POST", "/runs", body=body, headers=_once(idempotency_key))

    def create_sweep(self, body: SweepCreate, *, idempotency_key: str | None = None) -> Sweep:
        """Queue a run for every combination of the grid's values; the key works as for one run."""
        return self._call(Sweep, "POST", "/sweeps", body=body, headers=_once(idempotency_key))

    def found_sae(self, path: str) -> FoundSAE:
        """What the files of an SAE here or on the hub say about it."""
        return self._call(FoundSAE, "GET", "/imports/found", {"path": path})

    def create_import(self, body: ImportCreate, *, idempotency_key: str | None = None) -> Run:
        """Queue a run that evaluates and indexes an SAE; the key works as for `create_run`."""
        return self._call(Run, "POST", "/imports", body=body, headers=_once(idempotency_key))

    def run(self, run_id: str) -> Run:
        """One run in its current state."""
        return self._call(Run, "GET", run_path(run_id))

    def update_run(self, run_id: str, patch: RunPatch) -> Run:
        """Change a run's name, tags, notes or place in the queue, or archive it."""
        return self._call(Run, "PATCH", run_path(run_id), body=patch)

    def delete_run(self, run_id: str) -> None:
        """Delete a run that has ended, with its files."""
        self._send("DELETE", run_path(run_id))

    def stop_run(self, run_id: str, *, force: bool = False) -> Run:
        """Ask a run to end soon and build its features; `force` skips building them."""
        return self._call(Run, "POST", run_path(run_id, "stop"), {"force": force or None})

    def resume_run(self, run_id: str) -> Run:
        """Queue a run that ended early, to continue from its last checkpoint."""
        return self._call(Run, "POST", run_path(run_id, "resume"))

    def push_run(self, run_id: str, body: PushCreate) -> Pushed:
        """Push a run's SAE to the Hugging Face hub."""
        path = run_path(run_id, "push")
        return self._call(Pushed, "POST", path, body=body, seconds=PUSH_SECONDS)

    def retry_run(self, run_id: str) -> Run:
        """Queue a run that ended early, to continue from its checkpoint or else to start over."""
        return self._call(Run, "POST", run_path(run_id, "retry"))

    def metrics(
        self,
        run_id: str,
        *,
        keys: Sequence[str] = (),
        since_step: int | None = None,
        max_points: int | None = None,
    ) -> MetricsSeries:
        """A run's curves, all or only `keys`, from the first point after `since_step`."""
        query = {"since_step": since_step, "max_points": max_points, "keys": ",".join(keys) or None}
        return self._call(MetricsSeries, "GET", run_path(run_id, "metrics"), query)

    def notices(self, run_id: str) -> list[Notice]:
        """The run's messages for people, oldest first."""
        return self._call(list[Notice], "GET", run_path(run_id, "notices"))

    def environment(self, run_id: str) -> Environment | None:
        """What the run was started with; None if it has not been recorded."""
        try:
            return self._call(Environment, "GET", run_path(run_id, "environment"))
        except ApiProblem as error:
            if not error.problem.type.endswith(":environment-not-found"):
                raise
            return None

    def events(self, run_id: str, *, after: int = 0) -> Generator[RunEvent]:
        """A run's events after event number `after`, until the run has ended.

        A broken connection is reopened where it broke; raises `ApiProblem` when the server stays
        unreachable.
        """
        broken = 0
        while True:
            try:
                for event in self._events(
                    "GET", run_path(run_id, "events"), {"after": after}, seconds=SILENCE_SECONDS
                ):
                    broken = 0
                    if event.event in _EVENTS:
                        body = _EVENTS[event.event].model_validate_json(event.data)
                        yield RunEvent(event.event, body)
                    after = int(event.id or after)
                return
            except ApiProblem as problem:
                broken += 1
                if not problem.unreachable or broken > RECONNECTS:
                    raise
                time.sleep(RECONNECT_SECONDS)

    def log(self, run_id: str, *, tail: int = 200) -> str:
        """The last lines of a run's log."""
        return self._send("GET", run_path(run_id, "log"), {"tail": tail}).text

    def snapshots(self, run_id: str) -> list[Snapshot]:
        """The run's feature indexes in the order of their steps."""
        found = self._call(list[Snapshot], "GET", run_path(run_id, "snapshots"))
        return sorted(found, key=lambda snapshot: snapshot.step)


def _once(idempotency_key: str | None) -> dict[str, str]:
    """Headers under which repeating a request has no further effect."""
    return {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
