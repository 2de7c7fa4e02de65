"""Stop requests that are noticed while a library blocks.

Reading a dataset or downloading a model can block for minutes: the hub's libraries repeat a failed
request with pauses of up to a minute. Such work runs in a background thread here, while the calling
thread asks every quarter of a second whether to stop. Used by `text` and `model`.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

CHECK_SECONDS = 0.25
THREAD_NAME = "interruptible"

CheckStop = Callable[[], None]
"""Returns while work should continue and raises to abort it, an `Interruption` if it was asked
to end.
"""

_Item = TypeVar("_Item")


class Interruption(Exception):  # noqa: N818 - it is not an error
    """Work was asked to end; no error of that work, and never turned into one."""


def never_stop() -> None:
    """A `CheckStop` that never stops."""


def interruptible(items: Iterator[_Item], check_stop: CheckStop) -> Iterator[_Item]:
    """Iterate over `items`, each computed in a background thread on request.

    `check_stop` is called in the calling thread before each item and while waiting for it. What it
    raises ends the iteration; the thread ends when the item it is computing is done, or with
    `exit_if_abandoned`.
    """
    requests: SimpleQueue[bool] = SimpleQueue()
    answers: SimpleQueue[tuple[_Item, None] | tuple[None, BaseException]] = SimpleQueue()

    def answer_requests() -> None:
        while requests.get():
            try:
                answers.put((next(items), None))
            except BaseException as error:
                answers.put((None, error))

    Thread(target=answer_requests, name=THREAD_NAME, daemon=True).start()
    try:
        while True:
            check_stop()
            requests.put(True)
            item, error = _wait(answers, check_stop)
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # pyright: ignore[reportReturnType] - an item where there is no error
    finally:
        requests.put(False)


def call_interruptibly(call: Callable[[], _Item], check_stop: CheckStop) -> _Item:
    """`call()` in a background thread; `check_stop` is called while waiting for its result."""
    return next(interruptible((call() for _ in range(1)), check_stop))


def exit_if_abandoned(code: int) -> None:
    """Exit the process at once if work was abandoned in it, such as a download of many files.

    Call it last. A normal exit would wait for the work, because Python joins the thread pools that
    libraries opened, even those opened in a daemon thread.
    """
    if any(thread.name == THREAD_NAME for thread in threading.enumerate()):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(answers: SimpleQueue[_Item], check_stop: CheckStop) -> _Item:
    while True:
        try:
            return answers.get(timeout=CHECK_SECONDS)
        except Empty:
            check_stop()
