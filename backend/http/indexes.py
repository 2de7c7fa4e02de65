"""From a run and a snapshot to an open feature index."""

from __future__ import annotations

from sqlalchemy.orm import Session

from backend import store
from backend.errors import ConflictError
from backend.http.services import Services
from sae_engine.features.index.format import IndexDamagedError
from sae_engine.features.index.reader import FeatureIndex


def open_index(
    server: Services, session: Session, run_id: str, snapshot: int | None
) -> FeatureIndex:
    """The index of a run at a step, the newest if `snapshot` is None.

    Raises `NotFoundError` for a snapshot that does not exist, `ConflictError` where there is none
    yet, `IndexDamagedError` naming a file.
    """
    row = store.get_run(session, run_id)
    step = store.resolve_snapshot(session, row, snapshot)
    folder = server.settings.run_folder(run_id).feature_index(step)
    try:
        return server.indexes.get(folder)
    except FileNotFoundError:
        raise ConflictError(
            f"The features of step {step} are missing: the folder '{folder}' does not exist.",
            kind="index-damaged",
        ) from None


def readable_indexes(
    server: Services, session: Session, run_id: str
) -> tuple[list[FeatureIndex], list[int]]:
    """A run's indexes in the order of their steps, and the steps of those that are lost or damaged.

    Raises as `open_index` does if none can be read.
    """
    found: list[FeatureIndex] = []
    missing: list[int] = []
    row = store.get_run(session, run_id)
    newest = store.resolve_snapshot(session, row, None)
    for snapshot in store.snapshots(session, run_id):
        try:
            found.append(open_index(server, session, run_id, snapshot.step))
        except (ConflictError, IndexDamagedError):
            missing.append(snapshot.step)
    if not found:
        open_index(server, session, run_id, newest)
    return found, missing
