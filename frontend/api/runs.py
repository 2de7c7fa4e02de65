"""Calls about runs: made, found, steered, read."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import NamedTuple

from pydantic import TypeAdapter

from frontend.api.connection import ApiProblem, Connection
from frontend.api.sending import keyed, segment, sent
from sae_engine.schema.features import SortOrder
from sae_engine.schema.runs import (
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

SILENCE_SECONDS = 60.0
RECONNECTS = 30
RECONNECT_SECONDS = 2.0

_EVENTS: dict[str, type[MetricsEvent | StatusEvent | Snapshot | Notice]] = {
    "metrics": MetricsEvent,
    "status": StatusEvent,
    "snapshot": Snapshot,
    "alert": Notice,
    "notice": Notice,
}
_SNAPSHOTS = TypeAdapter(list[Snapshot])
_TAGS = TypeAdapter(list[TagCount])
_NOTICES = TypeAdapter(list[Notice])


class RunEvent(NamedTuple):
    """Something that happened to a run: `metrics`, `status`, `snapshot`, `alert` or `notice`."""

    name: str
    body: MetricsEvent | StatusEvent | Snapshot | Notice


class RunCalls(Connection):
    """Runs, and what they report."""

    def runs(
        self,
        *,
        status: RunStatus | Sequence[RunStatus] | None = None,
        q: str | None = None,
        tags: Sequence[str] = (),
        group_id: str | None = None,
        archived: bool | None = None,
        sort: RunSort | None = None,
        order: SortOrder | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> RunPage:
        """One page of runs that have all `tags`, newest first; those of a sweep have its
        `group_id`. Sorted by a metric, the lowest come first unless `order` says otherwise.
        """
        statuses = status if status is None or isinstance(status, str) else list(status)
        query: dict[str, object] = {"status": statuses, "q": q, "group_id": group_id}
        query |= {"tag": list(tags), "archived": archived, "sort": sort, "order": order}
        query |= {"limit": limit, "cursor": cursor}
        return self._read(RunPage, "/runs", query)

    def tags(self) -> list[TagCount]:
        """Every tag, the commonest first."""
        return _TAGS.validate_json(self._send("GET", "/tags").content)

    def create_run(self, body: RunCreate, *, idempotency_key: str | None = None) -> Run:
        """Queue a run; the same key gives back the same run however often it is sent."""
        headers = keyed(idempotency_key)
        answer = self._send("POST", "/runs", body=sent(body), headers=headers)
        return Run.model_validate_json(answer.content)

    def create_sweep(self, body: SweepCreate, *, idempotency_key: str | None = None) -> Sweep:
        """Queue a run for every combination of the grid's values; the key works as for one run."""
        headers = keyed(idempotency_key)
        answer = self._send("POST", "/sweeps", body=sent(body), headers=headers)
        return Sweep.model_validate_json(answer.content)

    def run(self, run_id: str) -> Run:
        """One run as it stands now."""
        return self._read(Run, f"/runs/{segment(run_id)}")

    def update_run(self, run_id: str, patch: RunPatch) -> Run:
        """Change a run's name, tags, notes, place in the queue or in the archive."""
        answer = self._send("PATCH", f"/runs/{segment(run_id)}", body=sent(patch))
        return Run.model_validate_json(answer.content)

    def delete_run(self, run_id: str) -> None:
        """Delete a run that has ended, its files included."""
        self._send("DELETE", f"/runs/{segment(run_id)}")

    def stop_run(self, run_id: str, *, force: bool = False) -> Run:
        """Ask a run to end soon and keep its features; `force` skips building them."""
        query = {"force": force} if force else {}
        answer = self._send("POST", f"/runs/{segment(run_id)}/stop", query)
        return Run.model_validate_json(answer.content)

    def resume_run(self, run_id: str) -> Run:
        """Queue a run that ended early to go on from its last checkpoint."""
        answer = self._send("POST", f"/runs/{segment(run_id)}/resume")
        return Run.model_validate_json(answer.content)

    def retry_run(self, run_id: str) -> Run:
        """Queue a run that ended early again: from its checkpoint, or from its beginning."""
        answer = self._send("POST", f"/runs/{segment(run_id)}/retry")
        return Run.model_validate_json(answer.content)

    def metrics(
        self,
        run_id: str,
        *,
        keys: Sequence[str] = (),
        since_step: int | None = None,
        max_points: int | None = None,
    ) -> MetricsSeries:
        """A run's curves, all or those of `keys`, from the first point after `since_step`."""
        query: dict[str, object] = {"since_step": since_step, "max_points": max_points}
        query["keys"] = ",".join(keys) or None
        return self._read(MetricsSeries, f"/runs/{segment(run_id)}/metrics", query)

    def notices(self, run_id: str) -> list[Notice]:
        """What the run left for people to read, oldest first."""
        answer = self._send("GET", f"/runs/{segment(run_id)}/notices")
        return _NOTICES.validate_json(answer.content)

    def events(self, run_id: str, *, after: int = 0) -> Generator[RunEvent]:
        """What happens to a run, from its event number `after` on, until it has ended.

        A connection that breaks is opened again where it broke; `ApiProblem` when the server stays
        away.
        """
        path = f"/runs/{segment(run_id)}/events"
        broken = 0
        while True:
            try:
                for event in self._events("GET", path, {"after": after}, wait=SILENCE_SECONDS):
                    broken = 0
                    if event.name in _EVENTS:
                        body = _EVENTS[event.name].model_validate_json(event.data)
                        yield RunEvent(event.name, body)
                    after = event.id or after
                return
            except ApiProblem as problem:
                broken += 1
                if not problem.unreachable or broken > RECONNECTS:
                    raise
                time.sleep(RECONNECT_SECONDS)

    def log(self, run_id: str, *, tail: int = 200) -> str:
        """The last lines of a run's log."""
        return self._send("GET", f"/runs/{segment(run_id)}/log", {"tail": tail}).text

    def snapshots(self, run_id: str) -> list[Snapshot]:
        """The feature indexes made so far, in the order of their steps."""
        answer = self._send("GET", f"/runs/{segment(run_id)}/snapshots")
        return sorted(_SNAPSHOTS.validate_json(answer.content), key=lambda s: s.step)
