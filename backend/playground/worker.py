"""The process that holds a language model and answers questions about a person's own text.
`python -m backend.playground.worker`.

Started by `client`. It ends at once when the pipe of questions closes, so it never outlives the
server. A question that fails does not affect others.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO

from pydantic import BaseModel

from backend.jobs.logs import log_plainly
from backend.playground.protocol import (
    EndReply,
    FailReply,
    Part,
    PartReply,
    PhaseReply,
    Question,
    ReadTask,
    Task,
)
from backend.processes import lower_priority
from backend.settings import load_settings
from sae_engine.errors import UserError

_log = logging.getLogger(__name__)

Parts = Iterator[Part]
Load = Callable[[Task], Callable[[], Parts]]
"""Loads what a task needs and returns the function that carries it out."""
MakeEngine = Callable[[Callable[[str], None]], Load]
"""Makes a `Load` that reports its phases to the given function."""


def main(make_engine: MakeEngine | None = None) -> None:
    """Answer questions, one after another, until the pipe closes."""
    log_plainly()
    lower_priority(load_settings().niceness)
    replies = _take_stdout()
    questions: queue.Queue[Question] = queue.Queue()
    canceled: set[int] = set()
    listener = threading.Thread(target=_listen, args=(questions, canceled), daemon=True)
    listener.start()

    def send(message: BaseModel) -> None:
        replies.write(message.model_dump_json().encode() + b"\n")
        replies.flush()

    load = (make_engine or engine)(lambda phase: send(PhaseReply(phase=phase)))
    while True:
        question = questions.get()
        _answer(question, load, send, canceled)
        canceled.discard(question.number)


def engine(report: Callable[[str], None]) -> Load:
    """The real engine; imported here, so that the listener runs during the slow import."""
    from sae_engine.model.identity import require_same_model
    from sae_engine.playground.cache import ModelCache
    from sae_engine.playground.read import read_text
    from sae_engine.playground.steer import steer

    cache = ModelCache(report)

    def load(task: Task) -> Callable[[], Parts]:
        model, sae = cache.get(task.model, task.sae)
        if task.model_file is not None:
            require_same_model(model.identity, task.model_file, vocab_size=task.vocab_size)
        largest_norm = math.inf if task.largest_norm is None else task.largest_norm

        def parts() -> Parts:
            if isinstance(task, ReadTask):
                yield read_text(
                    model,
                    sae,
                    task.text,
                    ctx_len=task.ctx_len,
                    top=task.top,
                    features=task.features,
                    largest_norm=largest_norm,
                )
            else:
                yield from steer(
                    model,
                    sae,
                    task.prompt,
                    task.activations,
                    max_new_tokens=task.max_new_tokens,
                    temperature=task.temperature,
                    seed=task.seed,
                    largest_norm=largest_norm,
                )

        return parts

    return load


def _take_stdout() -> BinaryIO:
    """The pipe for replies; anything that is printed goes to the log instead."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return pipe


def _listen(questions: queue.Queue[Question], canceled: set[int]) -> None:
    for line in sys.stdin.buffer:
        question = Question.model_validate_json(line)
        if question.task is None:
            canceled.add(question.number)
        else:
            questions.put(question)
    os._exit(0)


def _answer(
    question: Question, load: Load, send: Callable[[BaseModel], None], canceled: set[int]
) -> None:
    number = question.number
    assert question.task is not None
    reason = "unloadable"
    try:
        if number not in canceled:
            answer = load(question.task)
            reason = "refused"
            for part in answer():
                if number in canceled:
                    break
                send(PartReply(number=number, part=part))
    except UserError as error:
        send(FailReply(number=number, reason=reason, message=str(error)))
    except Exception as error:
        _log.exception("a question failed")
        text = next(iter(str(error).splitlines()), "")[:300]
        message = f"{type(error).__name__}: {text}" if text else type(error).__name__
        send(FailReply(number=number, reason="broken", message=message))
    else:
        send(EndReply(number=number))


if __name__ == "__main__":
    main()
