"""How far exports are, for browsers, which see nothing of a download before its first byte."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager

from backend.errors import NotFoundError
from sae_engine.schema.exports import ExportProgress

MOST_KEPT = 200


class Exports:
    """The latest exports that named themselves, by the names that their clients chose."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, ExportProgress] = OrderedDict()

    def of(self, request: str) -> ExportProgress:
        """Raises `NotFoundError` for an export that has not begun or was long ago."""
        with self._lock:
            found = self._known.get(request)
        if found is None:
            raise NotFoundError("No such export has begun.", kind="export-not-found")
        return found

    def report(self, request: str | None, progress: ExportProgress) -> None:
        """Keep an export's progress; nothing for one without a name."""
        if request is None:
            return
        with self._lock:
            self._known[request] = progress
            self._known.move_to_end(request)
            while len(self._known) > MOST_KEPT:
                self._known.popitem(last=False)

    @contextmanager
    def reported(self, request: str | None) -> Generator[None]:
        """Report that an export begins, and its failure."""
        self.report(request, ExportProgress(state="running", phase="starting"))
        try:
            yield
        except Exception as error:
            detail = str(error) or type(error).__name__
            self.report(request, ExportProgress(state="failed", phase="failed", detail=detail))
            raise
