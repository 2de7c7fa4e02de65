"""Runs written into a real database through `backend.store`, with curves of a closed form."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

from sqlalchemy.orm import Session

from backend import store
from backend.processes import this_process
from backend.settings import Settings
from backend.store.database import open_database
from sae_engine.presets import resolve_config
from sae_engine.schema.labels import LabelUpdate
from sae_engine.schema.records import MetricsRecord, SnapshotRecord
from sae_engine.schema.runs import ENDED, RunStatus
from tests.frontend.indexes import BATCH_TOKENS, FINAL_STEP, NUM_TOKENS, STEPS
from tests.frontend.samples import NASTY

TOKENS_PER_SECOND = 9_000.0
BEST_STEP, BEST_FVU = 400, 0.2


def point(step: int) -> dict[str, float]:
    """The metrics of a step; FVU is best at `BEST_STEP`."""
    fvu = BEST_FVU + abs(step - BEST_STEP) / 1000
    return {
        "loss": 1.05 * fvu,
        "fvu": fvu,
        "eval_fvu": fvu,
        "l0": 32.0,
        "eval_l0": 31.4,
        "lr": 3e-4,
    }


def seed(settings: Settings, indexes: Path) -> None:
    """Make a data folder with the runs `finished`, `failed` and `live`; only `live` has no features
    yet.
    """
    settings.data_dir.mkdir()
    with open_database(settings.resolved_database_url) as database, database.writing() as session:
        add_run(session, "finished", "tiny baseline", minutes=90, steps=FINAL_STEP)
        add_run(session, "failed", "lr too high", status="failed", minutes=60, steps=120)
        add_run(session, "live", f"live {NASTY}", status="running", steps=60, slot="cuda:0")
        store.take_over(session, "live", this_process())
        add_snapshots(session, settings, "finished", indexes / "a", STEPS)
        add_snapshots(session, settings, "failed", indexes / "b", STEPS[:1])
        store.set_label(session, "finished", 3, LabelUpdate(label=f"{NASTY} $x$", starred=True))
    settings.run_folder("finished").log.write_text("loading tiny-gemma2\nstep 5 loss 0.9\n")


def add_run(
    session: Session,
    run_id: str,
    name: str,
    *,
    status: RunStatus = "finished",
    minutes: float = 0,
    steps: int = 0,
    slot: str | None = None,
) -> None:
    """Store a run of the preset `tiny` that started `minutes` ago and reported `steps` steps."""
    config = resolve_config("tiny", {"name": name})
    first = "queued" if status == "queued" else "running"
    row = store.add_run(session, config=config, status=first, job=run_id)
    row.id = run_id
    session.flush()
    if status == "queued":
        return
    store.add_notice(session, run_id, level="info", message="1 row was dropped.", step=1)
    if steps:
        _report(session, run_id, steps, last_loss=math.nan if status == "failed" else 0.5)
    if status == "failed":
        message = "The loss became NaN at step 120; lower train.lr."
        kind, log_tail = "NonFiniteLossError", "step 120 nan"
        store.fail_run(session, run_id, status, kind=kind, message=message, log_tail=log_tail)
    elif status in ENDED:
        store.end_run(session, run_id, status)
    session.refresh(row)
    row.status, row.device, row.slot = status, "cuda:0", slot
    start = store.now() - timedelta(minutes=minutes)
    row.created_at = row.queued_at = row.started_at = start
    if status in ENDED:
        row.ended_at = start + timedelta(seconds=row.tokens / TOKENS_PER_SECOND)


def _report(session: Session, run_id: str, steps: int, *, last_loss: float) -> None:
    """Write a point every five steps."""
    records = [
        MetricsRecord(step=s, tokens=s * BATCH_TOKENS, time=s * 0.2, values=point(s))
        for s in range(5, steps + 1, 5)
    ]
    records[-1].values["loss"] = last_loss
    store.add_metrics(session, run_id, records)
    progress = {"step": steps, "total_steps": FINAL_STEP, "phase": "training", "eta_seconds": 60.0}
    progress |= {"tokens": steps * BATCH_TOKENS, "total_tokens": FINAL_STEP * BATCH_TOKENS}
    progress |= {"tokens_per_second": TOKENS_PER_SECOND}
    store.update_metrics(session, run_id, records[-1].values, **progress)


def add_snapshots(
    session: Session, settings: Settings, run_id: str, index: Path, steps: Iterable[int]
) -> None:
    """Link a run to the features of an index's folder, and record snapshots of them."""
    folder = settings.run_folder(run_id)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.features.symlink_to(index / "features")
    for step in steps:
        record = SnapshotRecord(
            step=step,
            tokens=step * BATCH_TOKENS,
            index_tokens=NUM_TOKENS,
            seconds=0.1,
            final=step == FINAL_STEP,
        )
        store.add_snapshot(session, run_id, record)
