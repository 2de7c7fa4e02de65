"""What endpoints work with: one `Services` object per server.

Built by `app`; endpoints take it as a `ServicesDep` parameter.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from backend import store
from backend.analyses.client import AnalysisClient
from backend.http.connections import most_connections
from backend.http.events import MAX_LISTENERS, EventFeed
from backend.http.exports import Exports
from backend.http.shapes import QueuePlace, run_shape
from backend.jobs.machine import ProcessorMeter
from backend.jobs.supervisor import JobCommand, Supervisor, job_command
from backend.labels.jobs import Labeler
from backend.playground.client import INFERENCE_COMMAND, PlaygroundClient
from backend.processes import raise_descriptor_limit
from backend.settings import Settings
from backend.store.database import Database
from backend.store.label_jobs import settle_label_jobs
from backend.store.models import RunRow
from sae_engine.features.index.format import IndexDamagedError
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.schema.runs import Run
from sae_engine.scratch import remove_abandoned

MAX_OPEN_INDEXES = 8
MAX_UPLOADS = 4
"""Files uploaded at a time."""
REQUEST_WAIT_SECONDS = 10.0
"""How long a request waits for other writers before it gets a 503; browsers wait for 15."""


class IndexCache:
    """The most recently used feature indexes, kept open."""

    def __init__(self, capacity: int = MAX_OPEN_INDEXES) -> None:
        def open_index(folder: Path, _inode: int) -> FeatureIndex:
            return FeatureIndex.open(folder)

        self._open = lru_cache(capacity)(open_index)

    def get(self, folder: Path) -> FeatureIndex:
        """The index in `folder`, opened again if the folder was replaced.

        Raises `FileNotFoundError` without a folder, `IndexDamagedError` for a missing or truncated
        file, also if it was damaged after it was opened.
        """
        index = self._open(folder, folder.stat().st_ino)
        try:
            index.check_sizes()
        except IndexDamagedError:
            self._open.cache_clear()  # a repaired file must not be read through its old mapping
            raise
        return index


class Services:
    """The database, the supervisor and the background work of one server."""

    def __init__(
        self,
        settings: Settings,
        command: JobCommand = job_command,
        inference: tuple[str, ...] = INFERENCE_COMMAND,
        busy_seconds: float = REQUEST_WAIT_SECONDS,
    ) -> None:
        self.settings = settings
        self.database = Database(settings.resolved_database_url, busy_seconds=busy_seconds)
        self.supervisor = Supervisor(settings, self.database, command=command)
        connections = most_connections(raise_descriptor_limit())
        self.events = EventFeed(self.database, max_listeners=min(MAX_LISTENERS, connections // 2))
        self.indexes = IndexCache()
        self.processors = ProcessorMeter()
        self.labeler = Labeler(self.database)
        self.exports = Exports()
        self.exporting = threading.Lock()
        """Held while an export of features is written; there is one at a time."""
        self.uploads = asyncio.Semaphore(MAX_UPLOADS)
        """Held while a file is uploaded."""
        self.is_closing = False
        """Whether the server was asked to exit."""
        self.analyses = AnalysisClient(settings)
        self.playground = PlaygroundClient(settings, inference)

    def start(self) -> None:
        """Prepare the data folder and the database, and start supervising."""
        self.settings.data_dir.mkdir(parents=True, exist_ok=True)
        for folder in self.settings.scratch_parents:
            remove_abandoned(folder)
        self.database.prepare()
        with self.database.writing() as session:
            settle_label_jobs(session)
        self.supervisor.start()

    def end_streams(self) -> None:
        """Let every answer that is still written come to its end."""
        self.is_closing = True
        self.events.close()

    def close(self) -> None:
        """End all background work but the training jobs."""
        with ExitStack() as closing:  # from the last to the first, whatever fails
            closing.callback(self.database.close)
            closing.callback(self.analyses.close)
            closing.callback(self.supervisor.close)
            closing.callback(self.playground.close)
            closing.callback(self.labeler.close)

    def run_shapes(self, session: Session, rows: Sequence[RunRow]) -> list[Run]:
        """The REST shapes of runs; queued ones with their place in the queue."""
        queue: dict[str, QueuePlace] = {}
        if any(row.status == "queued" for row in rows):
            places = self.supervisor.places(store.active_runs(session))
            for position, row in enumerate(store.queued_runs(session), 1):
                queue[row.id] = QueuePlace(position, places.why_waiting(row))
        return [run_shape(row, self.settings.run_folder(row.id), queue.get(row.id)) for row in rows]

    def run_shape(self, session: Session, row: RunRow) -> Run:
        """The REST shape of one run."""
        [run] = self.run_shapes(session, [row])
        return run


def _services(request: Request) -> Services:
    return request.app.state.services


ServicesDep = Annotated[Services, Depends(_services)]
"""Type of an endpoint's parameter that FastAPI fills with the server's `Services`."""
