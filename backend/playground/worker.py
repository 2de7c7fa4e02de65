"""The one process that holds a language model to answer questions about a person's own text.
`python -m backend.playground.worker`.

Started by the server on demand (`model_process`) and ended with it: when the pipe of its questions
closes, it goes at once, whatever it is doing. A question that fails ends that question alone.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO

from pydantic import BaseModel

from backend.jobs.logs import LOG_FORMAT
from backend.playground.protocol import (
    EndReply,
    FailReply,
    PartReply,
    PhaseReply,
    Question,
    ReadTask,
    SteerTask,
)
from backend.processes import lower_priority
from backend.settings import load_settings
from sae_engine.errors import UserError
from sae_engine.schema.playground import SteerToken, TextReading

_log = logging.getLogger(__name__)

Parts = Iterator[TextReading | SteerToken]
Load = Callable[[ReadTask | SteerTask], Callable[[], Parts]]
"""Makes ready what a task needs and returns what carries it out."""
MakeEngine = Callable[[Callable[[str], None]], Load]
"""The engine's door, given whom to tell what is being waited for."""


def main(make_engine: MakeEngine | None = None) -> None:
    """Answer one question after another, until the pipe closes."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, force=True)
    lower_priority(load_settings().niceness)
    replies = _take_stdout()
    questions: queue.Queue[Question] = queue.Queue()
    taken_back: set[int] = set()
    listener = threading.Thread(target=_listen, args=(questions, taken_back), daemon=True)
    listener.start()

    def send(message: BaseModel) -> None:
        replies.write(message.model_dump_json().encode() + b"\n")
        replies.flush()

    load = (make_engine or engine)(lambda phase: send(PhaseReply(phase=phase)))
    while True:
        question = questions.get()
        _answer(question, load, send, lambda number=question.number: number in taken_back)
        taken_back.discard(question.number)


def engine(report: Callable[[str], None]) -> Load:
    """The real engine, imported late: the first question is heard before the seconds that its
    import costs.
    """
    from sae_engine.playground.cache import ModelCache
    from sae_engine.playground.read import read_text
    from sae_engine.playground.steer import steer

    cache = ModelCache(report)

    def load(task: ReadTask | SteerTask) -> Callable[[], Parts]:
        model, sae = cache.get(task.model, task.sae)

        def read() -> Parts:
            assert isinstance(task, ReadTask)
            yield read_text(
                model, sae, task.text, ctx_len=task.ctx_len, top=task.top, features=task.features
            )

        def go_on() -> Parts:
            assert isinstance(task, SteerTask)
            yield from steer(
                model,
                sae,
                task.prompt,
                task.activations,
                max_new_tokens=task.max_new_tokens,
                temperature=task.temperature,
                seed=task.seed,
            )

        return read if isinstance(task, ReadTask) else go_on

    return load


def _take_stdout() -> BinaryIO:
    """The pipe for replies; what anyone prints goes to the log instead."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return pipe


def _listen(questions: queue.Queue[Question], taken_back: set[int]) -> None:
    for line in sys.stdin.buffer:
        question = Question.model_validate_json(line)
        if question.task is None:
            taken_back.add(question.number)
        else:
            questions.put(question)
    os._exit(0)


def _answer(
    question: Question,
    load: Load,
    send: Callable[[BaseModel], None],
    is_taken_back: Callable[[], bool],
) -> None:
    number = question.number
    assert question.task is not None
    reason = "unloadable"
    try:
        if not is_taken_back():
            answer = load(question.task)
            reason = "refused"
            for part in answer():
                if is_taken_back():
                    break
                send(PartReply(number=number, part=part))
    except UserError as error:
        send(FailReply(number=number, reason=reason, message=str(error)))
    except Exception as error:
        _log.exception("a question could not be answered")
        text = next(iter(str(error).splitlines()), "")[:300]
        message = f"{type(error).__name__}: {text}" if text else type(error).__name__
        send(FailReply(number=number, reason="broken", message=message))
    else:
        send(EndReply(number=number))


if __name__ == "__main__":
    main()
