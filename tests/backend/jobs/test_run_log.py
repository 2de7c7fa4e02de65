"""The log lines of a run."""

from __future__ import annotations

import logging

import pytest

from backend.jobs.run_log import RunLog
from sae_engine.schema.records import (
    EndRecord,
    MetricsRecord,
    NoticeRecord,
    PhaseRecord,
    PlanRecord,
    SnapshotRecord,
    StartRecord,
)


def test_phases_plans_evaluations_snapshots_and_some_steps_are_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    log = RunLog("abc")
    log.write(PhaseRecord(phase="loading the language model"))
    log.write(
        PlanRecord(
            total_steps=9000, total_tokens=90_000, d_in=8, d_sae=4096, lr=0.00123, device="cpu"
        )
    )
    log.write(StartRecord(step=0, tokens=0))
    for step in (1, 2):  # too soon after the first, the second is left out
        values = {"fvu": 1 / (step + 2), "lr": 0.1, "tokens_per_second": 12_345.6}
        log.write(MetricsRecord(step=step, tokens=step, time=step, values=values))
    values = {"fvu": 0.25, "eval_fvu": 0.5, "frac_alive": 1.0}
    log.write(MetricsRecord(step=3, tokens=30, time=3.0, values=values))
    log.write(
        SnapshotRecord(step=3, tokens=30, index_tokens=50_000, seconds=1.25, final=False),
    )
    log.write(NoticeRecord(level="warning", message="100% is <much>"))
    log.write(EndRecord(reason="finished", step=3, tokens=30))
    assert {record.name for record in caplog.records} == {"run.abc"}
    assert [record.getMessage() for record in caplog.records] == [
        "loading the language model",
        "9,000 steps, 90,000 tokens; 8 -> 4,096 latents; peak learning rate 0.00123; on cpu",
        "begins at step 0",
        "step 1 / 9,000: fvu 0.3333, tokens_per_second 1.235e+04",
        "step 3 / 9,000: eval_fvu 0.5, frac_alive 1",
        "step 3: indexed the features on 50,000 tokens in 1.2 s",
        "100% is <much>",
    ]
    assert caplog.records[-1].levelno == logging.WARNING
