"""An engine without torch that takes milliseconds and behaves as the run's name says.

`python -c "from tests.backend.fake_engine import main; main()" <job>` is a job that uses it.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta

from backend.jobs import worker
from backend.store import common, reports, states
from sae_engine.errors import UserError
from sae_engine.files import RunFolder
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import (
    AnyRecord,
    EndRecord,
    FailureRecord,
    MetricsRecord,
    NoticeRecord,
    PhaseRecord,
    PlanRecord,
    SnapshotRecord,
    StartRecord,
    StopRequest,
)
from sae_engine.training.member import Member

TOTAL_STEPS = 20
BATCH_TOKENS = 100
POURED_STEPS = 2000
"""Steps of a run named `pour`, one per millisecond."""


def fake_job(job: str) -> list[str]:
    """The command line of a job that uses this engine."""
    return [sys.executable, "-c", "from tests.backend.fake_engine import main; main()", job]


def main() -> None:
    shift_clock(timedelta(minutes=float(os.environ.get("CLOCK_MINUTES", "0"))))
    sys.exit(worker.main(*sys.argv[1:], train=train))


def shift_clock(by: timedelta) -> None:
    """What this process stores bears the time of a machine whose clock is wrong."""

    def now() -> datetime:
        return common.now() + by

    states.now = reports.now = now


def train(members: Sequence[Member]) -> Iterator[tuple[int, AnyRecord]]:
    """Take turns between the runs, one record each."""
    running = {number: _train(*member) for number, member in enumerate(members)}
    while running:
        for number, records in list(running.items()):
            record = next(records)
            if isinstance(record, EndRecord | FailureRecord):
                del running[number]
            yield number, record


def _train(
    config: RunConfig,
    folder: RunFolder,
    should_stop: Callable[[], StopRequest],
    resume: bool,
) -> Iterator[AnyRecord]:
    """Act by the first word of the run's name; an unknown one trains to the end."""
    action = config.name.split()[0]
    print(f"fake engine: {action}, resume={resume}", flush=True)
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    print(f"CUDA_VISIBLE_DEVICES={seen}, model.device={config.model.device}", flush=True)
    yield PhaseRecord(phase="training")
    yield PlanRecord(
        total_steps=TOTAL_STEPS,
        total_tokens=TOTAL_STEPS * BATCH_TOKENS,
        d_in=8,
        d_sae=16,
        lr=1e-3,
        device="cpu",
    )
    if action == "refuse":
        raise UserError("The text is empty; give a dataset with text.")
    if action == "diverge":
        yield FailureRecord(
            error_type="NonFiniteLossError", message="The loss became nan at step 7.", step=7
        )
    if action == "break":
        raise ZeroDivisionError("a bug\nin two lines")
    if action == "exit":
        os._exit(7)
    if action == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    first = int(folder.checkpoint.read_text()) + 1 if resume else 1
    yield StartRecord(step=first - 1, tokens=(first - 1) * BATCH_TOKENS)
    for step in range(first, (POURED_STEPS if action == "pour" else TOTAL_STEPS) + 1):
        yield measured(step)
        should_stop()
        if action == "pour":
            time.sleep(0.001)
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    folder.checkpoint.write_text("10")
    if action == "mute":
        yield PhaseRecord(phase="muttering")
        while should_stop() == StopRequest.NONE:
            time.sleep(0.02)
        yield EndRecord(reason="stopped", step=TOTAL_STEPS, tokens=TOTAL_STEPS * BATCH_TOKENS)
        return
    yield PhaseRecord(phase="waiting" if action in ("wait", "deaf") else "ending")
    while action in ("wait", "deaf"):
        if action == "wait" and should_stop() != StopRequest.NONE:
            yield EndRecord(reason="stopped", step=TOTAL_STEPS, tokens=TOTAL_STEPS * BATCH_TOKENS)
            return
        time.sleep(0.02)
        yield PhaseRecord(phase="waiting")
    yield NoticeRecord(level="warning", message="One latent is dead.", step=TOTAL_STEPS)
    yield SnapshotRecord(
        step=TOTAL_STEPS,
        tokens=TOTAL_STEPS * BATCH_TOKENS,
        index_tokens=50,
        seconds=0.1,
        final=True,
    )
    yield EndRecord(reason="finished", step=TOTAL_STEPS, tokens=TOTAL_STEPS * BATCH_TOKENS)


def measured(step: int) -> MetricsRecord:
    """The fake engine's measurements at a step; loss and FVU are NaN at step 7."""
    value = math.nan if step == 7 else 1 / step
    values = {"loss": value, "fvu": value, "l0": 4.0}
    if step % 10 == 0:
        values["eval_fvu"] = 2 / step
    return MetricsRecord(step=step, tokens=step * BATCH_TOKENS, time=step * 0.5, values=values)
