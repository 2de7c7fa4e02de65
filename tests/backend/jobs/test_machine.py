"""The memory and processors of a machine, or of a container's control groups."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

import psutil
import pytest

from backend.jobs.machine import (
    ProcessorMeter,
    ProcessorTimes,
    memory,
    num_cpus,
    processor_times,
)

MIB = 2**20


def written(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "own"


def test_the_smallest_limit_of_version_2_counts(tmp_path: Path, own: Path) -> None:
    own.write_text("0::/a/b\n")
    written(tmp_path, memory__max="max", memory__current=1, cpu__max="max 100000")
    written(
        tmp_path / "a",
        memory__max=64 * MIB,
        memory__current=60 * MIB,
        memory__stat=f"anon 3\ninactive_file {10 * MIB}",
        cpu__max="150000 100000",
    )
    written(tmp_path / "a/b", memory__max=128 * MIB, memory__current=MIB, cpu__max="max 100000")
    assert memory(tmp_path, own) == (64 * MIB, 14 * MIB)
    assert num_cpus(tmp_path, own) == min(2, num_cpus(tmp_path / "none", own))


def test_the_limits_of_version_1_count(tmp_path: Path, own: Path) -> None:
    own.write_text("5:memory:/box\n4:cpu,cpuacct:/box\n3:pids:/box\n")
    written(
        tmp_path / "memory/box",
        memory__limit_in_bytes=32 * MIB,
        memory__usage_in_bytes=40 * MIB,
        memory__stat="total_inactive_file 0",
    )
    written(tmp_path / "memory", memory__limit_in_bytes=2**62, memory__usage_in_bytes=0)
    written(tmp_path / "cpu/box", cpu__cfs_quota_us=50_000, cpu__cfs_period_us=100_000)
    assert memory(tmp_path, own) == (32 * MIB, 0)
    assert num_cpus(tmp_path, own) == 1


@pytest.mark.parametrize("content", [None, "0::/nowhere", "0::/a"])
def test_without_limits_the_machine_counts(tmp_path: Path, own: Path, content: str | None) -> None:
    if content is not None:
        own.write_text(content)
    written(tmp_path / "a", memory__max="max", memory__current=5, cpu__cfs_quota_us=-1)
    assert memory(tmp_path, own).total == psutil.virtual_memory().total
    assert 1 <= num_cpus(tmp_path, own) <= (psutil.cpu_count() or 1)


def test_the_share_of_the_processors_is_that_since_the_last_reading_of_any_thread() -> None:
    readings = iter([(0, 0), (1, 4), (1.01, 4.1), (4.01, 8.1), (4.01, 12.1)])
    meter = ProcessorMeter(lambda: ProcessorTimes(*next(readings)))
    shares: list[float] = []
    for _ in range(4):
        thread = Thread(target=lambda: shares.append(meter.read()))
        thread.start()
        thread.join()
    assert shares == pytest.approx([0.25, 0.25, 3.01 / 4.1, 0.0])


def test_this_machine_has_used_some_of_its_time() -> None:
    busy, total = processor_times()
    assert 0 < busy < total
