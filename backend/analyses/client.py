"""What takes too long for a request: computed once, in a process of its own, and kept in the data
folder.

`python -m backend.analyses.worker` does the work and publishes a folder by rename. One computation
runs at a time; whoever asks while another one runs waits, and is served by asking again. It ends
with the server: its standard input is a pipe that closes when this process goes, however that
happens.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeVar

from backend.errors import ConflictError
from backend.processes import describe_signal
from backend.settings import Settings
from sae_engine.features.index.format import SAE
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.schema.analysis import AnalysisProgress

END_SECONDS = 5.0
"""How long a computation may take to end before it is killed."""
DIGEST_LENGTH = 12

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Source(NamedTuple):
    """The snapshot of a run, and its SAE."""

    run_id: str
    features: FeatureIndex

    @property
    def name(self) -> str:
        """Changes when the run is trained anew from before the snapshot."""
        digest = self.features.manifest.files[SAE].sha256[:DIGEST_LENGTH]
        return f"{self.run_id}-{self.features.step}-{digest}"


class Analysis(NamedTuple):
    """Something to be computed."""

    kind: Literal["map", "matches"]
    sources: tuple[Source, ...]

    @property
    def name(self) -> str:
        """Of its folder: what it is computed from."""
        return "_".join([self.kind, *(source.name for source in self.sources)])


Command = Callable[[Analysis, Path], list[str]]
"""From what is to be computed and the folder to publish to the command line that does it."""


def analysis_command(analysis: Analysis, target: Path) -> list[str]:
    folders = [str(source.features.folder) for source in analysis.sources]
    return [sys.executable, "-m", "backend.analyses.worker", analysis.kind, str(target), *folders]


class _Running(NamedTuple):
    name: str
    run_ids: frozenset[str]
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    """Its messages, one JSON object a line."""
    errors: IO[bytes]


class Analyses:
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
        """What was computed, read by `load`; or how far it is, begun with this call if need be.

        Raises `ConflictError` once for a computation that failed; asking again begins it anew.
        """
        target = self._folder / analysis.name
        with self._lock:
            self._notice_end()
            if target.is_dir():
                try:
                    return load(target)
                except (OSError, ValueError) as error:
                    _log.warning("%s is damaged (%s) and computed anew", target, error)
                    shutil.rmtree(target, ignore_errors=True)
            if analysis.name in self._failures:
                raise ConflictError(self._failures.pop(analysis.name), kind="analysis-failed")
            if self._running is None:
                self._running = self._start(analysis, target)
            elif self._running.name != analysis.name:
                return AnalysisProgress(phase="waiting for another computation", fraction=None)
            return _progress(self._running)

    def forget(self, run_id: str) -> None:
        """Delete all that was computed from a run."""
        with self._lock:
            if self._running is not None and run_id in self._running.run_ids:
                self._end(self._running)
            for folder in self._folder.glob(f"*_{run_id}-*"):
                shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """End what is running."""
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
        threading.Thread(target=self._await, args=(process,), daemon=True).start()
        run_ids = frozenset(source.run_id for source in analysis.sources)
        return _Running(analysis.name, run_ids, process, output, errors)

    def _await(self, process: subprocess.Popen[bytes]) -> None:
        """Notice a computation's end also where nobody asks for it any more."""
        process.wait()
        with self._lock:
            self._notice_end()

    def _notice_end(self) -> None:
        """Remember why a computation failed."""
        ended = self._running
        if ended is None or ended.process.poll() is None:
            return
        if ended.process.returncode != 0:
            self._failures[ended.name] = _why_it_failed(ended)
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


def _said(file: IO[bytes]) -> str:
    """All that was written to a file; the writer's place in it, which is shared, stays."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode("utf-8", "replace")


def _last_message(running: _Running) -> dict[str, Any]:
    """The last whole line of a computation's messages; empty before the first."""
    lines = _said(running.output).split("\n")[:-1]
    return json.loads(lines[-1]) if lines else {}


def _progress(running: _Running) -> AnalysisProgress:
    said = _last_message(running)
    return AnalysisProgress(phase=said.get("phase", "starting"), fraction=said.get("fraction"))


def _why_it_failed(ended: _Running) -> str:
    """One sentence; what only a programmer wants to know goes to the log."""
    error = _last_message(ended).get("error")
    if error is not None:
        return error
    _log.error("computing %s failed:\n%s", ended.name, _said(ended.errors))
    code = ended.process.returncode
    if code >= 0:
        return f"The computation ended with exit code {code}; the server's log has the details."
    message = f"The computation was ended by {describe_signal(-code)}."
    if -code == signal.SIGKILL:
        message += " Often that means the machine ran out of memory."
    return message
