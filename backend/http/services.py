"""What every endpoint works with, made once per server."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from backend import store
from backend.analyses.client import Analyses
from backend.http.events import EventFeed
from backend.http.shapes import Waiting, run_shape
from backend.jobs.supervisor import JobCommand, Supervisor, job_command
from backend.labels.jobs import Labeler
from backend.playground.client import INFERENCE_COMMAND, ModelProcess
from backend.settings import Settings
from backend.store.database import Database
from backend.store.models import RunRow
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.schema.runs import Run

MAX_OPEN_INDEXES = 8


class IndexCache:
    """The feature indexes that were asked for last, kept open."""

    def __init__(self, capacity: int = MAX_OPEN_INDEXES) -> None:
        self._capacity = capacity
        self._open: OrderedDict[tuple[Path, int], FeatureIndex] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, folder: Path) -> FeatureIndex:
        """Open an index; one that was replaced on disk is opened anew. Raises
        `IndexDamagedError`, also for one whose files were truncated since.
        """
        key = (folder, folder.stat().st_ino)
        with self._lock:
            index = self._open.pop(key, None)
            if index is None:
                index = FeatureIndex.open(folder)
            else:
                index.check_sizes()
            self._open[key] = index
            while len(self._open) > self._capacity:
                self._open.popitem(last=False)
        return index


class Services:
    """What one server holds: database, supervisor, labeling, computations, open indexes."""

    def __init__(
        self,
        settings: Settings,
        command: JobCommand = job_command,
        inference: tuple[str, ...] = INFERENCE_COMMAND,
    ) -> None:
        self.settings = settings
        self.database = Database(settings.resolved_database_url)
        self.supervisor = Supervisor(settings, self.database, command=command)
        self.events = EventFeed(self.database)
        self.indexes = IndexCache()
        self.labeler = Labeler(self.database)
        self.exporting = threading.Lock()
        """Held by the one export of features that is being written."""
        self.analyses = Analyses(settings)
        self.language_model = ModelProcess(settings, inference)

    def shapes(self, session: Session, rows: Sequence[RunRow]) -> list[Run]:
        """Runs as they travel; those that wait say for what."""
        waiting: dict[str, Waiting] = {}
        if any(row.status == "queued" for row in rows):
            places = self.supervisor.places(store.active_runs(session))
            for position, row in enumerate(store.queued_runs(session), 1):
                waiting[row.id] = Waiting(position, places.why_waiting(row))
        return [
            run_shape(row, self.settings.run_folder(row.id), waiting.get(row.id)) for row in rows
        ]


def _services(request: Request) -> Services:
    return request.app.state.services


Server = Annotated[Services, Depends(_services)]
"""Parameter of an endpoint that needs the database, the supervisor, the indexes or the language
model.
"""
