"""A repeated message is printed once a minute."""

from __future__ import annotations

import logging

from backend.http.repeats import MAX_REMEMBERED, QUIET_SECONDS, OnceAMinute, quiet_repeats


class Shown(logging.Handler):
    """Collects what passes the filter at a time that tests set."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.lines: list[str] = []
        self.seen = OnceAMinute(lambda: self.now)
        self.addFilter(self.seen)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def record(message: str, *args: object, error: Exception | None = None) -> logging.LogRecord:
    info = None if error is None else (type(error), error, None)
    return logging.LogRecord("backend", logging.ERROR, __file__, 1, message, args, info)


def test_a_message_is_printed_once_a_minute_with_the_number_of_repeats() -> None:
    shown = Shown()
    for _ in range(1_000):
        shown.handle(record("run %s failed", "a"))
    shown.handle(record("run %s failed", "b"))
    shown.now = QUIET_SECONDS
    shown.handle(record("run %s failed", "a"))
    assert shown.lines == ["run a failed", "run b failed", "run a failed (999 more times since)"]


def test_the_same_words_about_another_error_are_another_message() -> None:
    shown = Shown()
    for error in (OSError(24, "x"), OSError(28, "y"), ValueError("x"), OSError(24, "x")):
        shown.handle(record("it failed", error=error))
    assert len(shown.lines) == 3


def test_ordinary_messages_pass_and_memory_is_bounded() -> None:
    shown = Shown()
    for number in range(3 * MAX_REMEMBERED):
        shown.handle(record("failure %s", number))
    assert len(shown.seen._seen) <= MAX_REMEMBERED
    for _ in range(3):
        shown.handle(logging.LogRecord("backend", logging.INFO, __file__, 1, "hello", (), None))
    assert shown.lines[-3:] == ["hello"] * 3


def test_the_filter_is_added_once() -> None:
    for _ in range(3):
        quiet_repeats()
    assert logging.lastResort is not None
    assert len([f for f in logging.lastResort.filters if isinstance(f, OnceAMinute)]) == 1
