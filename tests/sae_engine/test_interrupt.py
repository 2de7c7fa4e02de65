"""Iteration that can be interrupted against plain iteration."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from sae_engine.interrupt import THREAD_NAME, call_interruptibly, interruptible, never_stop


class StopError(Exception):
    pass


class Background:
    """The background threads started since this object was made."""

    def __init__(self) -> None:
        self._others = set(threading.enumerate())  # also those that other tests left

    def threads(self) -> list[threading.Thread]:
        started = set(threading.enumerate()) - self._others
        return [thread for thread in started if thread.name == THREAD_NAME]

    def wait_until_none_is_left(self, deadline_seconds: float = 5) -> None:
        deadline = time.monotonic() + deadline_seconds
        while self.threads() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.threads() == []


@pytest.fixture
def background() -> Background:
    return Background()


def test_items_come_in_order_and_only_on_request(background: Background):
    computed: list[int] = []

    def items() -> Iterator[int]:
        for number in range(5):
            computed.append(number)
            yield number

    found = interruptible(items(), never_stop)
    assert next(found) == 0
    assert computed == [0]
    assert list(found) == [1, 2, 3, 4]
    background.wait_until_none_is_left()


def test_an_error_is_raised_after_the_items_before_it():
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    found = interruptible(items(), never_stop)
    assert next(found) == 1
    with pytest.raises(KeyError, match="broken"):
        next(found)


def test_a_stop_interrupts_an_item_that_blocks(background: Background):
    blocked, unblock = threading.Event(), threading.Event()

    def check_stop() -> None:
        if blocked.is_set():
            raise StopError

    def call() -> None:
        blocked.set()
        unblock.wait(60)

    began = time.monotonic()
    with pytest.raises(StopError):
        call_interruptibly(call, check_stop)
    assert time.monotonic() - began < 30
    unblock.set()
    background.wait_until_none_is_left()


def test_a_stop_is_checked_between_items_that_do_not_block():
    calls: list[None] = []

    def check_stop() -> None:
        calls.append(None)
        if len(calls) > 3:
            raise StopError

    found = interruptible(iter(range(10)), check_stop)
    with pytest.raises(StopError):
        list(found)


def test_an_abandoned_iteration_leaves_no_thread(background: Background):
    found = interruptible(iter(range(10)), never_stop)
    next(found)
    assert len(background.threads()) == 1
    del found
    background.wait_until_none_is_left()


_ABANDONS_A_DOWNLOAD = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from sae_engine.interrupt import call_interruptibly, exit_if_abandoned

def download():
    with ThreadPoolExecutor(1) as pool:
        list(pool.map(time.sleep, [200] * 3))

began = time.monotonic()
def stop_soon():
    if time.monotonic() > began + 0.5:
        raise TimeoutError

try:
    call_interruptibly(download, stop_soon)
except TimeoutError:
    print("stopped")
exit_if_abandoned(3)
sys.exit(4)
"""


def test_a_process_exits_at_once_although_a_download_of_many_files_was_abandoned() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ABANDONS_A_DOWNLOAD], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (3, "stopped"), done.stderr
