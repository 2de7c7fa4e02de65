"""Soak test: everyday use of a server for a long time, and the memory that its process holds:
`python -m tests.chaos.soak --minutes 60`.

Runs start, end and are deleted; lists, curves, logs, features and lookups are read; event streams
are opened and closed. Prints the resident memory of the web process once a minute, and its growth
over the second half of the time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from itertools import count
from pathlib import Path

import httpx
import numpy as np
import psutil

from tests.chaos.workbench import FAKE, QUICK, Workbench, opened

KEPT_RUNS = 40
ROUND_SECONDS = 1.0
REPORT_SECONDS = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        with opened(data, QUICK) as workbench:
            trained = workbench.create("trained")
            workbench.wait_for_status(trained, "finished")
        with opened(data, FAKE) as workbench:
            soak(workbench, trained, minutes * 60)


def soak(workbench: Workbench, trained: str, seconds: float) -> None:
    """Use a server for a while and print its memory."""
    assert workbench.process is not None
    server = psutil.Process(workbench.process.pid)
    began = time.monotonic()
    next_report = began
    minutes: list[float] = []
    held: list[float] = []
    runs: list[str] = []
    num_answers = 0
    print(f"{os.cpu_count()} CPUs, {psutil.virtual_memory().total / 2**30:.0f} GiB of memory")
    print("minute  RSS [MiB]  threads  open files  runs so far  answers so far")
    for number in count(1):
        now = time.monotonic()
        if now >= next_report:
            next_report += REPORT_SECONDS
            minutes.append((now - began) / 60)
            held.append(server.memory_info().rss / 2**20)
            print(
                f"{minutes[-1]:6.1f}  {held[-1]:9.1f}  {server.num_threads():7}  "
                f"{server.num_fds():10}  {number - 1:11}  {num_answers:14}",
                flush=True,
            )
        if now - began >= seconds:
            break
        runs.append(workbench.create(f"finish {number}", {}))
        num_answers += send_requests(workbench.http, runs[-1], trained, number)
        if len(runs) > KEPT_RUNS:
            oldest = runs.pop(0)
            workbench.wait_for_status(oldest, "finished")
            workbench.http.delete(f"/api/runs/{oldest}").raise_for_status()
        time.sleep(max(0, ROUND_SECONDS - (time.monotonic() - now)))
    half = len(held) // 2
    if len(held) - half >= 2:
        slope = np.polyfit(minutes[half:], held[half:], 1)[0]
        print(f"in the second half {slope * 60:+.1f} MiB an hour")


def send_requests(http: httpx.Client, run_id: str, trained: str, number: int) -> int:
    """Send the requests of a page and a notebook; returns their number."""
    paths = [
        "/api/runs", "/api/system", f"/api/runs?q=finish {number}",
        f"/api/runs/{run_id}", f"/api/runs/{run_id}/metrics", f"/api/runs/{run_id}/log",
        f"/api/runs/{run_id}/notices", f"/api/runs/{trained}/metrics?max_points=50",
        f"/api/runs/{trained}/features?limit=50&sort=max_activation",
        f"/api/runs/{trained}/features/{number % 128}",
        f"/api/runs/{trained}/features/{number % 128}/history",
        f"/api/runs/{trained}/lookup?text=import", f"/api/runs/{trained}/lookup?text=word{number}",
        f"/api/runs/{trained}/densities", f"/api/runs/{run_id[:3]}{number}", "/",
    ]  # fmt: skip
    for path in paths:
        assert http.get(path).status_code in (200, 404), path
    with http.stream("GET", f"/api/runs/{run_id}/events") as events:
        next(events.iter_lines())  # then disconnects
    return len(paths) + 1


if __name__ == "__main__":
    main()
