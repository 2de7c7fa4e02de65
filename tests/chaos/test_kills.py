"""Jobs and servers killed at random moments: every run's status is correct and it can continue."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import psutil
import pytest

from sae_engine.schema.runs import ENDED
from tests.chaos.conftest import Twin
from tests.chaos.workbench import (
    CONFIG,
    QUICK,
    ROUNDS,
    Workbench,
    assert_like_its_twin,
    assert_prefix,
    assert_whole,
    opened,
    wait_until,
)

ROUNDS_PER_RUN = 5
TOTAL_STEPS = CONFIG["train"]["total_tokens"] // CONFIG["train"]["batch_size_tokens"]


@pytest.mark.timeout(120 * ROUNDS)
def test_nothing_is_lost_whatever_is_killed_at_any_moment(twin: Twin, tmp_path: Path) -> None:
    """A run is killed up to five times, then ends like its twin; then the next one.

    The moments are random, with a printed seed: right after the start, while loading, or some steps
    and milliseconds after the last kill, during steps, evaluations, checkpoints or indexing.
    """
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    chance = random.Random(seed)
    with opened(tmp_path / "data", QUICK) as workbench:
        for first in range(0, ROUNDS, ROUNDS_PER_RUN):
            run_id = workbench.create("disturbed")
            for _ in range(min(ROUNDS_PER_RUN, ROUNDS - first)):
                _wait_for_a_moment(workbench, run_id, chance)
                _kill_something(workbench, run_id, chance)
                _check_and_resume(workbench, run_id, twin)
            assert_like_its_twin(workbench, run_id, *twin)
            wait_until(lambda: not workbench.processes(), "no process left over")


def _wait_for_a_moment(workbench: Workbench, run_id: str, chance: random.Random) -> None:
    if chance.random() < 0.2:
        time.sleep(chance.uniform(0, 3))  # while it is claimed, starts or loads
        return
    done = workbench.run(run_id).progress.step
    wanted = done + chance.randint(1, max(1, (TOTAL_STEPS - done) // 2))
    wait_until(
        lambda: (
            workbench.run(run_id).progress.step >= wanted or workbench.run(run_id).status in ENDED
        ),
        f"step {wanted}",
    )
    time.sleep(chance.uniform(0, 0.3))


def _kill_something(workbench: Workbench, run_id: str, chance: random.Random) -> None:
    what = chance.choice(["job", "server", "both"])
    print(f"kills {what} at step {workbench.run(run_id).progress.step}")
    job = workbench.job_of(run_id)
    if what != "server" and job is not None:
        job.kill()
    if what != "job":
        workbench.kill()
        workbench.start()


def _check_and_resume(workbench: Workbench, run_id: str, twin: Twin) -> None:
    """An active run has a living process; an ended one has none and can be resumed."""

    def settled() -> bool:
        run, job = workbench.run(run_id), workbench.job_of(run_id)
        if run.status in ENDED:
            return job is None
        return job is not None and job.status() != psutil.STATUS_ZOMBIE

    wait_until(settled, "a consistent state")
    run = workbench.run(run_id)
    assert_prefix(workbench, run_id, workbench_metrics(twin))
    assert_whole(workbench, run_id)
    if run.status in ENDED and run.status != "finished":
        assert run.status == "interrupted", run.error
        assert run.error is not None
        assert run.error.type in ("SIGKILL", "ProcessVanished")
        assert workbench.resume(run_id).status == "queued"


def workbench_metrics(twin: Twin) -> dict[int, dict[str, object]]:
    return twin.workbench.metrics(twin.run_id)
