"""Labeling jobs: a language model proposes labels, and scores each on held-out contexts.

A job is a thread with an event loop, because it only waits for an endpoint. Every label is stored
as soon as it is scored. A job ends with its server and is then stored as interrupted.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from backend.labels.chat import ChatClient, EndpointError
from backend.processes import start_of
from backend.store.database import Database
from backend.store.label_jobs import count_for_label_job, end_label_job, note_label_problem
from backend.store.labels import propose_label
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.features.labels.examples import examples_of
from sae_engine.features.labels.questions import (
    PROMPT_VERSION,
    Messages,
    detect_questions,
    detection_score,
    explain_question,
    read_judgments,
    read_label,
)
from sae_engine.schema.labels import DetectionScore, LabelJobStatus

TRIES = 2
"""Attempts per answer when the first is unusable."""
FAILURES_IN_A_ROW = 5
"""Consecutive features lost to endpoint errors before a job gives up."""
CLOSING_SECONDS = 5.0
"""How long a server that closes waits for its jobs."""
INTERNAL_ERROR = "Internal server error; see the server's log."
SERVER_ENDED = "The server that ran this job has ended."

_Read = TypeVar("_Read")


class _UnusableAnswerError(Exception):
    """The model's answer does not have the requested form."""


class _EndedError(Exception):
    """The job was ended in the database, or its run was deleted."""


@dataclass
class _Usage:
    """Calls and tokens spent on one feature, under the names of the job's columns."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class LabelTask:
    """What a job labels."""

    job_id: int
    run_id: str
    index: FeatureIndex
    features: Sequence[int]
    model: str
    concurrency: int


class Labeler:
    """The labeling jobs of one server."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._running: dict[int, tuple[asyncio.AbstractEventLoop, threading.Thread]] = {}
        self._lock = threading.Lock()

    @staticmethod
    def process() -> tuple[int, float]:
        """Pid and start time of this process, which tell whether its jobs are still running."""
        return os.getpid(), start_of(os.getpid())

    def start(self, task: LabelTask, client: Callable[[], ChatClient]) -> None:
        """Start a job that is stored as running."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(
            target=self._run, args=(loop, task, client), name=f"labels-{task.job_id}", daemon=True
        )
        with self._lock:
            self._running[task.job_id] = (loop, thread)
        thread.start()

    def cancel(self, job_id: int) -> None:
        """Cancel the requests of a job that was ended in the database."""
        with self._lock:
            running = self._running.get(job_id)
        if running is not None:
            _cancel_all(running[0])

    def close(self) -> None:
        """Interrupt all jobs, because the server ends."""
        with self._lock:
            running = dict(self._running)
        for job_id, (loop, _) in running.items():
            with suppress(DBAPIError), self._database.writing() as session:
                end_label_job(session, job_id, "interrupted", SERVER_ENDED)
            _cancel_all(loop)
        for _, thread in running.values():
            thread.join(CLOSING_SECONDS)

    def _run(
        self,
        loop: asyncio.AbstractEventLoop,
        task: LabelTask,
        client: Callable[[], ChatClient],
    ) -> None:
        try:
            loop.run_until_complete(_Job(self._database, task).run(client))
        except asyncio.CancelledError:
            pass  # `cancel` and `close` are called after the reason was stored
        finally:
            with self._lock:
                self._running.pop(task.job_id)
            loop.close()


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    def cancel() -> None:
        for task in asyncio.all_tasks(loop):
            task.cancel()

    with suppress(RuntimeError):  # the loop is already closed
        loop.call_soon_threadsafe(cancel)


class _Job:
    """One job, whose features are labeled by a few concurrent workers."""

    def __init__(self, database: Database, task: LabelTask) -> None:
        self._database = database
        self._task = task
        self._remaining = iter(task.features)
        self._failures = 0

    async def run(self, client: Callable[[], ChatClient]) -> None:
        """Label all features, and store how the job ended."""
        try:
            async with aclosing(client()) as chat:
                await self._label_all(chat)
        except _EndedError:
            return
        except EndpointError as error:
            self._end("failed", str(error))
        except Exception:
            self._end("failed", INTERNAL_ERROR)
            raise
        else:
            self._end("finished")

    async def _label_all(self, chat: ChatClient) -> None:
        num_workers = min(self._task.concurrency, len(self._task.features))
        workers = [asyncio.create_task(self._work(chat)) for _ in range(num_workers)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, chat: ChatClient) -> None:
        for feature in self._remaining:
            usage = _Usage()
            try:
                label, score = await self._label(chat, feature, usage)
            except _UnusableAnswerError as error:
                self._store_failure(feature, usage, str(error))
            except EndpointError as error:
                self._failures += 1
                if not error.transient or self._failures >= FAILURES_IN_A_ROW:
                    raise
                self._store_failure(feature, usage, str(error))
            else:
                self._failures = 0
                self._store(feature, usage, label, score)

    async def _label(
        self, chat: ChatClient, feature: int, usage: _Usage
    ) -> tuple[str, DetectionScore | None]:
        """A label and, if the feature fires often enough for held-out contexts, its score."""
        examples = examples_of(self._task.index, feature)
        label = await _ask(chat, explain_question(examples), read_label, usage)
        if not examples.held_out or not examples.held_out_silent:
            return label, None
        truths: list[bool] = []
        judged: list[bool] = []
        for messages, some in detect_questions(label, examples, seed=feature):
            read = partial(read_judgments, count=len(some))
            judged += await _ask(chat, messages, read, usage)
            truths += some
        return label, detection_score(truths, judged)

    def _store(self, feature: int, usage: _Usage, label: str, score: DetectionScore | None) -> None:
        task = self._task
        with self._database.writing() as session:
            if not count_for_label_job(session, task.job_id, **vars(usage)):
                raise _EndedError
            written = propose_label(
                session,
                task.run_id,
                feature,
                label,
                model=task.model,
                prompt_version=PROMPT_VERSION,
                score=score,
            )
            count_for_label_job(session, task.job_id, **{"labeled" if written else "kept": 1})

    def _store_failure(self, feature: int, usage: _Usage, problem: str) -> None:
        with self._database.writing() as session:
            if not count_for_label_job(session, self._task.job_id, failed=1, **vars(usage)):
                raise _EndedError
            note_label_problem(session, self._task.job_id, f"Feature {feature}: {problem}")

    def _end(self, status: LabelJobStatus, problem: str | None = None) -> None:
        with self._database.writing() as session:
            end_label_job(session, self._task.job_id, status, problem)


async def _ask(
    chat: ChatClient, messages: Messages, read: Callable[[str], _Read | None], usage: _Usage
) -> _Read:
    """What `read` finds in an answer; asks again after an unusable one."""
    text = ""
    for _ in range(TRIES):
        answer = await chat.ask(messages)
        text = answer.text
        usage.calls += 1
        usage.prompt_tokens += answer.prompt_tokens
        usage.completion_tokens += answer.completion_tokens
        found = read(text)
        if found is not None:
            return found
    raise _UnusableAnswerError(f"the model gave an unusable answer: {text[:100]!r}.")
