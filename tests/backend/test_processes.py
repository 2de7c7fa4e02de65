"""A process is distinguished from a later one with its number, whatever the clock does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from backend import processes
from backend.processes import is_alive, is_elsewhere, start_of
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


@pytest.mark.skipif(not processes.PID_NAMESPACE.exists(), reason="needs PID namespaces")
def test_a_process_of_another_container_on_this_machine_is_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file's inode stands for the namespace of a container, a missing file for none."""
    mine = start_of(os.getpid())
    others: list[float] = []
    (tmp_path / "container").touch()
    for name in ("container", "missing"):
        with monkeypatch.context() as patch:
            patch.setattr(processes, "PID_NAMESPACE", tmp_path / name)
            others.append(start_of(os.getpid()))
            assert not is_elsewhere(others[-1])
            assert is_elsewhere(mine)
    for other in others:
        assert is_elsewhere(other)
        assert not is_alive(os.getpid(), other)
    assert others[0] != others[1]


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_a_process_in_a_new_namespace_is_elsewhere() -> None:
    code = "from backend.processes import this_process as p; print(*p())"
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--mount-proc", "--fork"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        assert not os.environ.get("CI"), "namespaces are not permitted"
        pytest.skip("namespaces are not permitted")
    done = subprocess.run([*unshare, sys.executable, "-c", code], capture_output=True, check=True)
    pid, created = done.stdout.split()
    assert int(pid) == 1
    assert is_elsewhere(float(created))


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
