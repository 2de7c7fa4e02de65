"""The server's side of the process that holds a language model: it is started by the first
question, answers one after another, and is ended when it has been idle for a while.

No torch here; `backend.playground.worker` is what is started.
"""

from __future__ import annotations

import logging
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import ValidationError

from backend.errors import (
    ApiError,
    ConflictError,
    FailedError,
    UnavailableError,
    UnprocessableError,
)
from backend.playground.protocol import (
    REPLY,
    EndReply,
    FailReply,
    PartReply,
    PhaseReply,
    Question,
    ReadTask,
    SteerTask,
)
from backend.processes import describe_signal
from backend.settings import Settings
from sae_engine.schema.playground import InferenceStatus, SteerToken, TextReading

MAX_WAITING = 16
RETRY_AFTER_SECONDS = 5
GRACE_SECONDS = 5.0
POLL_SECONDS = 0.25
STARTING = "starting a process for the language model"

INFERENCE_COMMAND = (sys.executable, "-m", "backend.playground.worker")

_log = logging.getLogger(__name__)


class Phase(NamedTuple):
    """What an answer waits for, in words."""

    text: str


Part = TextReading | SteerToken


class _Lost(NamedTuple):
    """The process ended before it had answered."""

    exit_code: int


_Inbox = queue.Queue[PartReply | EndReply | FailReply | _Lost]


@dataclass(eq=False)
class _Child:
    """The process as long as it lives, and who waits for its replies."""

    process: subprocess.Popen[bytes]
    phase: str | None = STARTING
    inboxes: dict[int, _Inbox] = field(default_factory=lambda: dict[int, _Inbox]())

    def send(self, question: Question) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(question.model_dump_json().encode() + b"\n")
        self.process.stdin.flush()

    def hang_up(self) -> None:
        """Close the pipe of questions, at which it goes."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()

    def end(self) -> None:
        """Make it go and wait until it is gone."""
        self.hang_up()
        try:
            self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class ModelProcess:
    """Questions to the language model; safe to ask from several threads."""

    def __init__(self, settings: Settings, command: tuple[str, ...] = INFERENCE_COMMAND) -> None:
        self._settings = settings
        self._command = command
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._listener: threading.Thread | None = None
        self._idle_timer: threading.Timer | None = None
        self._next_number = 0

    def status(self) -> InferenceStatus:
        with self._lock:
            child = self._child
            if child is None:
                return InferenceStatus(state="off", phase=None, waiting=0)
            waiting = len(child.inboxes)
            if child.phase is not None:
                return InferenceStatus(state="warming-up", phase=child.phase, waiting=waiting)
            return InferenceStatus(
                state="busy" if waiting else "ready", phase=None, waiting=waiting
            )

    def ask(
        self, task: ReadTask | SteerTask, *, patience_seconds: float | None = None
    ) -> Generator[Phase | Part]:
        """The parts of the answer as they come, and between them, again and again, what they wait
        for; closing it takes the question back.

        Raises `ConflictError` where the model or the SAE cannot be loaded, `UnprocessableError` for
        a question that cannot be answered, `FailedError` for a mistake of the program, and
        `UnavailableError` when the process is overrun or has vanished, or when the first part does
        not come within `patience_seconds`.
        """
        deadline = None if patience_seconds is None else time.monotonic() + patience_seconds
        child, number, inbox = self._send(task)
        is_over, waiting = False, "waiting for an answer"
        try:
            while True:
                try:
                    reply = inbox.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    if deadline is not None and time.monotonic() > deadline:
                        raise self._still_warming_up(child) from None
                    yield Phase(child.phase or waiting)
                    continue
                match reply:
                    case PartReply():
                        deadline, waiting = None, "writing on"
                        yield reply.part
                    case EndReply():
                        is_over = True
                        return
                    case FailReply() | _Lost():
                        is_over = True
                        raise self._error_of(reply)
        finally:
            self._forget(child, number, take_back=not is_over)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            child, self._child = self._child, None
            if self._idle_timer is not None:
                self._idle_timer.cancel()
            if child is not None:
                child.end()
            listener = self._listener
        if listener is not None:
            listener.join()

    def _send(self, task: ReadTask | SteerTask) -> tuple[_Child, int, _Inbox]:
        with self._lock:
            if self._child is not None and len(self._child.inboxes) >= MAX_WAITING:
                raise UnavailableError(
                    f"{MAX_WAITING} questions wait for the language model; ask again later.",
                    kind="inference-busy",
                    retry_after_seconds=RETRY_AFTER_SECONDS,
                )
            if self._idle_timer is not None:
                self._idle_timer.cancel()
            number = self._next_number = self._next_number + 1
            question = Question(number=number, task=task)
            inbox: _Inbox = queue.Queue()
            child = self._child or self._start()
            try:
                child.send(question)
            except (BrokenPipeError, ValueError):  # it has just died: ask its successor
                child = self._start()
                child.send(question)
            child.inboxes[number] = inbox
            return child, number, inbox

    def _start(self) -> _Child:
        try:
            with self._settings.inference_log.open("wb") as log:
                process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=self._settings.environment(),
                    start_new_session=True,  # Ctrl-C in the server's terminal is the server's
                )
        except OSError as error:
            raise UnavailableError(
                f"The process for the language model could not be started: {error}.",
                kind="inference-lost",
            ) from error
        self._child = child = _Child(process)
        self._listener = threading.Thread(
            target=self._listen, args=(child,), name="inference", daemon=True
        )
        self._listener.start()
        return child

    def _listen(self, child: _Child) -> None:
        assert child.process.stdout is not None
        with child.process.stdout as lines:
            try:
                for line in lines:
                    self._receive(child, REPLY.validate_json(line))
            except ValidationError:
                _log.exception("the process for the language model made no sense")
                child.process.kill()
        exit_code = child.process.wait()
        with self._lock:
            child.hang_up()
            if self._child is child:
                self._child = None
            for inbox in child.inboxes.values():
                inbox.put(_Lost(exit_code))

    def _receive(self, child: _Child, reply: PhaseReply | PartReply | EndReply | FailReply) -> None:
        with self._lock:
            if isinstance(reply, PhaseReply):
                child.phase = reply.phase
                return
            child.phase = None
            if reply.number in child.inboxes:
                child.inboxes[reply.number].put(reply)

    def _forget(self, child: _Child, number: int, *, take_back: bool) -> None:
        with self._lock:
            del child.inboxes[number]
            if self._child is not child:
                return
            if take_back:
                with suppress(BrokenPipeError):
                    child.send(Question(number=number, task=None))
            if not child.inboxes:
                self._idle_timer = threading.Timer(
                    self._settings.inference_idle_seconds, self._unload, args=(child,)
                )
                self._idle_timer.daemon = True
                self._idle_timer.start()

    def _unload(self, child: _Child) -> None:
        with self._lock:
            if self._child is child and not child.inboxes:
                self._child = None
                child.end()

    def _still_warming_up(self, child: _Child) -> ApiError:
        doing = f"is still {child.phase}" if child.phase else "is answering other questions"
        return UnavailableError(
            f"The process for the language model {doing}; ask again in a while.",
            kind="warming-up",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )

    def _error_of(self, reply: FailReply | _Lost) -> ApiError:
        log = self._settings.inference_log
        if isinstance(reply, _Lost):
            how = f"exit code {reply.exit_code}"
            if reply.exit_code < 0:
                how = describe_signal(-reply.exit_code)
            memory = ", which often means that the memory ran out" if how == "SIGKILL" else ""
            return UnavailableError(
                f"The process for the language model was ended by {how}{memory}; ask again, or see "
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
