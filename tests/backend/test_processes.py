"""A process is distinguished from a later one with its number, whatever the clock does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from backend.processes import is_alive, start_of
from tests.backend.conftest import wait_for


def test_a_process_is_identified_by_boot_and_tick_rather_than_by_the_clock() -> None:
    """psutil adds the time of the boot, which moves with the clock, to the same tick."""
    me = os.getpid()
    ticks = start_of(me) % 2**33
    expected = (psutil.Process().create_time() - psutil.boot_time()) * os.sysconf("SC_CLK_TCK")
    assert abs(ticks - expected) <= 100  # the clock may be adjusted by a second between the two
    assert start_of(me) == start_of(me)
    assert is_alive(me, start_of(me))


def test_another_start_or_boot_means_another_process() -> None:
    me = os.getpid()
    assert not is_alive(me, start_of(me) + 1)
    assert not is_alive(me, start_of(me) + 2**33)
    assert not is_alive(me, psutil.Process().create_time())
    assert not is_alive(2**22 - 1, start_of(me))


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = start_of(child.pid)
    assert is_alive(child.pid, start)
    child.send_signal(signal.SIGKILL)
    wait_for(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    assert start_of(child.pid) == start
    assert not is_alive(child.pid, start)
    child.communicate()
    assert not is_alive(child.pid, start)
    with pytest.raises(psutil.NoSuchProcess):
        start_of(child.pid)
