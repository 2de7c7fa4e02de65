"""The server's end of the process that holds a language model.

The first question starts the process, which answers one question at a time and is ended after some
idle minutes. No torch here; the process is `backend.playground.worker`.
"""

from __future__ import annotations

import logging
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field

from pydantic import ValidationError

from backend.errors import (
    ApiError,
    ConflictError,
    FailedError,
    UnavailableError,
    UnprocessableError,
)
from backend.playground.pipe import SEND_SECONDS, QuestionPipe
from backend.playground.protocol import (
    REPLY,
    EndReply,
    FailReply,
    Part,
    PartReply,
    PhaseReply,
    Question,
    Reply,
    Task,
)
from backend.processes import describe_signal
from backend.settings import Settings
from sae_engine.schema.playground import InferenceStatus, SteerPhase

MAX_WAITING = 16
RETRY_AFTER_SECONDS = 5
GRACE_SECONDS = 5.0
"""How long the process may take to end before it is killed."""
POLL_SECONDS = 0.25
"""Time between the phases that `ask` yields while there is no reply."""
STARTING = "loading the language model"

INFERENCE_COMMAND = (sys.executable, "-m", "backend.playground.worker")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Exited:
    """In an inbox: the process ended before the answer did."""

    exit_code: int
    was_stuck: bool


_Inbox = queue.Queue[PartReply | EndReply | FailReply | _Exited]


@dataclass(eq=False)
class _Worker:
    """A running process and the open questions to it."""

    process: subprocess.Popen[bytes]
    pipe: QuestionPipe
    phase: str | None = STARTING
    inboxes: dict[int, _Inbox] = field(default_factory=lambda: dict[int, _Inbox]())

    def send(self, question: Question) -> None:
        self.pipe.send(question.model_dump_json().encode() + b"\n")

    def end(self) -> None:
        """Stop the process and wait for it to exit."""
        self.pipe.hang_up()
        try:
            self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class PlaygroundClient:
    """Asks the language model; safe to use from several threads."""

    def __init__(
        self,
        settings: Settings,
        command: tuple[str, ...] = INFERENCE_COMMAND,
        send_seconds: float = SEND_SECONDS,
    ) -> None:
        self._settings = settings
        self._send_seconds = send_seconds
        self._command = command
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._listener: threading.Thread | None = None
        self._idle_timer: threading.Timer | None = None
        self._last_number = 0

    def status(self) -> InferenceStatus:
        """What the process is doing."""
        with self._lock:
            worker = self._worker
            if worker is None:
                return InferenceStatus(state="off", phase=None, waiting=0)
            waiting = len(worker.inboxes)
            if worker.phase is not None:
                return InferenceStatus(state="warming-up", phase=worker.phase, waiting=waiting)
            state = "busy" if waiting else "ready"
            return InferenceStatus(state=state, phase=None, waiting=waiting)

    def ask(
        self, task: Task, *, patience_seconds: float | None = None
    ) -> Generator[SteerPhase | Part]:
        """The parts of the answer as they arrive, and the current phase while there are none.

        Closing the generator cancels the question. Raises `ConflictError` if the model or the SAE
        cannot be loaded, `UnprocessableError` for an invalid question, `FailedError` if the worker
        fails, and `UnavailableError` if too many questions are waiting, the process ends, or the
        first part takes longer than `patience_seconds`.
        """
        deadline = None if patience_seconds is None else time.monotonic() + patience_seconds
        worker, number, inbox = self._send(task)
        is_over, waiting = False, "waiting for an answer"
        try:
            while True:
                try:
                    reply = inbox.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    if deadline is not None and time.monotonic() > deadline:
                        raise _too_slow(worker) from None
                    yield SteerPhase(phase=worker.phase or waiting)
                    continue
                if isinstance(reply, PartReply):
                    deadline, waiting = None, "writing"
                    yield reply.part
                    continue
                is_over = True
                if isinstance(reply, EndReply):
                    return
                raise self._error_of(reply)
        finally:
            self._forget(worker, number, cancel=not is_over)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            worker, self._worker = self._worker, None
            if self._idle_timer is not None:
                self._idle_timer.cancel()
            listener = self._listener
        if worker is not None:
            worker.end()  # without the lock, which its last replies need
        if listener is not None:
            listener.join()

    def _send(self, task: Task) -> tuple[_Worker, int, _Inbox]:
        with self._lock:
            if self._worker is not None and len(self._worker.inboxes) >= MAX_WAITING:
                raise UnavailableError(
                    f"{MAX_WAITING} questions are waiting for the language model; try again later.",
                    kind="inference-busy",
                    retry_after_seconds=RETRY_AFTER_SECONDS,
                )
            if self._idle_timer is not None:
                self._idle_timer.cancel()
            self._last_number += 1
            question = Question(number=self._last_number, task=task)
            worker = self._worker
            if worker is None or worker.process.poll() is not None:  # it may have just died
                worker = self._start()
            worker.send(question)
            inbox = worker.inboxes[question.number] = queue.Queue()
            return worker, question.number, inbox

    def _start(self) -> _Worker:
        try:
            with self._settings.inference_log.open("wb") as log:
                process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=self._settings.environment(),
                    start_new_session=True,  # Ctrl-C in the server's terminal must not reach it
                )
        except OSError as error:
            raise UnavailableError(
                f"The process for the language model could not be started: {error}.",
                kind="inference-lost",
            ) from error
        self._worker = worker = _Worker(process, QuestionPipe(process, self._send_seconds))
        self._listener = threading.Thread(
            target=self._listen, args=(worker,), name="inference", daemon=True
        )
        self._listener.start()
        return worker

    def _listen(self, worker: _Worker) -> None:
        """Deliver the replies of a process until it ends."""
        assert worker.process.stdout is not None
        with worker.process.stdout as lines:
            try:
                for line in lines:
                    self._receive(worker, REPLY.validate_json(line))
            except ValidationError:
                _log.exception("the process for the language model sent an invalid reply")
                worker.process.kill()
        exit_code = worker.process.wait()
        with self._lock:
            worker.pipe.hang_up()
            if self._worker is worker:
                self._worker = None
            for inbox in worker.inboxes.values():
                inbox.put(_Exited(exit_code, worker.pipe.is_stuck))

    def _receive(self, worker: _Worker, reply: Reply) -> None:
        with self._lock:
            if isinstance(reply, PhaseReply):
                worker.phase = reply.phase
                return
            worker.phase = None
            if reply.number in worker.inboxes:
                worker.inboxes[reply.number].put(reply)

    def _forget(self, worker: _Worker, number: int, *, cancel: bool) -> None:
        with self._lock:
            del worker.inboxes[number]
            if self._worker is not worker:
                return
            if cancel:
                worker.send(Question(number=number, task=None))
            if not worker.inboxes:
                self._idle_timer = threading.Timer(
                    self._settings.inference_idle_seconds, self._unload, args=(worker,)
                )
                self._idle_timer.daemon = True
                self._idle_timer.start()

    def _unload(self, worker: _Worker) -> None:
        """End a process that is idle."""
        with self._lock:
            if self._worker is not worker or worker.inboxes:
                return
            self._worker = None
        worker.end()

    def _error_of(self, reply: FailReply | _Exited) -> ApiError:
        log = self._settings.inference_log
        if isinstance(reply, _Exited):
            how = f"exit code {reply.exit_code}"
            if reply.exit_code < 0:
                how = describe_signal(-reply.exit_code)
            if reply.was_stuck:
                how = "the server, because it read no questions"
            memory = ", often because the machine ran out of memory" if how == "SIGKILL" else ""
            return UnavailableError(
                f"The process for the language model was ended by {how}{memory}; try again, or see "
                f"'{log}'.",
                kind="inference-lost",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        match reply.reason:
            case "unloadable":
                return ConflictError(reply.message, kind="model-unavailable")
            case "refused":
                return UnprocessableError(reply.message, kind="invalid")
            case "broken":
                return FailedError(
                    f"The question could not be answered ({reply.message}); '{log}' has the "
                    "details.",
                    kind="internal",
                )


def _too_slow(worker: _Worker) -> ApiError:
    doing = f"is still {worker.phase}" if worker.phase else "is answering other questions"
    return UnavailableError(
        f"The playground {doing}; try again later.",
        kind="warming-up",
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )
