"""Runs computations too slow for a request, once, in a process; keeps results in the data folder.

The process is `backend.analyses.worker`. One computation runs at a time; a request for another one
waits by asking again. The process ends with the server: its standard input is a pipe that closes
when the server is gone, for whatever reason.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

from backend.analyses.protocol import Kind, Message, worker_command
from backend.errors import ConflictError
from backend.processes import describe_signal
from backend.settings import Settings
from sae_engine.features.index.format import SAE
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.schema.analysis import AnalysisProgress

END_SECONDS = 5.0
"""How long a computation may take to end before it is killed."""
DIGEST_LENGTH = 12
VERSION = 2
"""Raised when a computation changes, so that stored results are computed again."""

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Source(NamedTuple):
    """A snapshot of a run."""

    run_id: str
    features: FeatureIndex

    @property
    def name(self) -> str:
        """Differs for a snapshot of the same step with another SAE, as after a retry."""
        digest = self.features.manifest.files[SAE].sha256[:DIGEST_LENGTH]
        return f"{self.run_id}-{self.features.step}-{digest}"


class Analysis(NamedTuple):
    """A computation: what to compute, and from which snapshots."""

    kind: Kind
    sources: tuple[Source, ...]

    @property
    def name(self) -> str:
        """Name of the result's folder."""
        return "_".join([f"{self.kind}{VERSION}", *(source.name for source in self.sources)])


Command = Callable[[Analysis, Path], list[str]]
"""The command line that makes an analysis and publishes its result as a folder."""


def analysis_command(analysis: Analysis, target: Path) -> list[str]:
    return worker_command(analysis.kind, target, [s.features.folder for s in analysis.sources])


class _Running(NamedTuple):
    name: str
    run_ids: frozenset[str]
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    """Its messages."""
    errors: IO[bytes]


class AnalysisClient:
    """The computations of one server; safe to use from several threads."""

    def __init__(self, settings: Settings, *, command: Command = analysis_command) -> None:
        self._settings = settings
        self._folder = settings.data_dir / "analyses"
        self._command = command
        self._running: _Running | None = None
        self._failures: dict[str, str] = {}
        self._lock = threading.Lock()

    def get(
        self, analysis: Analysis, load: Callable[[Path], _Result]
    ) -> _Result | AnalysisProgress:
        """The result, read by `load`, or its progress; starts the computation if necessary.

        Raises `ConflictError` for a computation that failed; the call after that starts it again.
        """
        target = self._folder / analysis.name
        with self._lock:
            self._notice_end()
            if target.is_dir():
                try:
                    return load(target)
                except (OSError, ValueError) as error:
                    _log.warning("%s is damaged (%s); computing it again", target, error)
                    shutil.rmtree(target, ignore_errors=True)
            if analysis.name in self._failures:
                raise ConflictError(self._failures.pop(analysis.name), kind="analysis-failed")
            if self._running is None:
                self._running = self._start(analysis, target)
            elif self._running.name != analysis.name:
                return AnalysisProgress(phase="waiting for another computation", fraction=None)
            last = _last_message(self._running)
            return AnalysisProgress(phase=last.phase, fraction=last.fraction)

    def forget(self, run_id: str) -> None:
        """Delete everything computed from a run."""
        with self._lock:
            if self._running is not None and run_id in self._running.run_ids:
                self._end(self._running)
            for folder in self._folder.glob(f"*_{run_id}-*"):
                shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """End the running computation."""
        with self._lock:
            if self._running is not None:
                self._end(self._running)

    def _start(self, analysis: Analysis, target: Path) -> _Running:
        output, errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        try:
            process = subprocess.Popen(
                self._command(analysis, target),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=errors,
                env=self._settings.environment(),
                start_new_session=True,
            )
        except OSError as error:
            output.close()
            errors.close()
            message = f"The computation could not be started: {error}."
            raise ConflictError(message, kind="analysis-failed") from None
        threading.Thread(target=self._wait_for, args=(process,), daemon=True).start()
        run_ids = frozenset(source.run_id for source in analysis.sources)
        return _Running(analysis.name, run_ids, process, output, errors)

    def _wait_for(self, process: subprocess.Popen[bytes]) -> None:
        """Reap a process even if its result is never asked for again."""
        process.wait()
        with self._lock:
            self._notice_end()

    def _notice_end(self) -> None:
        """Clean up after a computation that has ended, and remember why it failed."""
        ended = self._running
        if ended is None or ended.process.poll() is None:
            return
        if ended.process.returncode != 0:
            self._failures[ended.name] = _failure(ended)
        self._close(ended)

    def _end(self, running: _Running) -> None:
        running.process.terminate()
        try:
            running.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            running.process.kill()
            running.process.wait()
        self._close(running)

    def _close(self, ended: _Running) -> None:
        self._running = None
        assert ended.process.stdin is not None
        for file in (ended.process.stdin, ended.output, ended.errors):
            file.close()


def _written(file: IO[bytes]) -> str:
    """All of a file's text; does not move the file position, which the worker shares."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode("utf-8", "replace")


def _last_message(running: _Running) -> Message:
    lines = _written(running.output).split("\n")[:-1]  # the last line may be incomplete
    return Message.model_validate_json(lines[-1]) if lines else Message()


def _failure(ended: _Running) -> str:
    """Why a computation failed, in one sentence; a traceback goes to the log."""
    error = _last_message(ended).error
    if error is not None:
        return error
    _log.error("computing %s failed:\n%s", ended.name, _written(ended.errors))
    code = ended.process.returncode
    if code >= 0:
        return f"The computation ended with exit code {code}; the server's log has the details."
    message = f"The computation was ended by {describe_signal(-code)}."
    if -code == signal.SIGKILL:
        message += " This often means that the machine ran out of memory."
    return message
