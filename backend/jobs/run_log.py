"""Log lines of a run: phases, evaluations, snapshots, and occasionally a step."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from sae_engine.schema.records import (
    AnyRecord,
    MetricsRecord,
    NoticeRecord,
    PhaseRecord,
    PlanRecord,
    SnapshotRecord,
    StartRecord,
)

STEP_SECONDS = 15.0
"""Time between log lines for steps without an evaluation."""
_STEP_METRICS = ("loss", "fvu", "l0", "frac_dead", "tokens_per_second")
_HELDOUT_METRICS = ("eval_fvu", "eval_l0", "frac_alive", "ce_delta", "ce_loss_score")


class RunLog:
    """Writes one run's records to the log of its process."""

    def __init__(self, run_id: str) -> None:
        self._log = logging.getLogger(f"run.{run_id}")
        self._total_steps = 0
        self._next_step_line = 0.0

    def write(self, record: AnyRecord) -> None:
        """Log a record; ends and failures are logged by the caller."""
        match record:
            case PhaseRecord():
                if record.done in (None, 1):
                    self._log.info("%s", record.phase)
            case PlanRecord():
                self._total_steps = record.total_steps
                self._log.info(
                    "%s steps, %s tokens; %s -> %s latents; peak learning rate %.3g; on %s",
                    f"{record.total_steps:,}",
                    f"{record.total_tokens:,}",
                    record.d_in,
                    f"{record.d_sae:,}",
                    record.lr,
                    record.device,
                )
            case StartRecord():
                self._log.info("begins at step %s", f"{record.step:,}")
            case SnapshotRecord():
                self._log.info(
                    "step %s: indexed the features on %s tokens in %.1f s",
                    f"{record.step:,}",
                    f"{record.index_tokens:,}",
                    record.seconds,
                )
            case NoticeRecord():
                level = logging.WARNING if record.level == "warning" else logging.INFO
                self._log.log(level, "%s", record.message)
            case MetricsRecord():
                self._write_metrics(record)
            case _:
                pass

    def _write_metrics(self, record: MetricsRecord) -> None:
        held_out = _formatted(record.values, _HELDOUT_METRICS)
        if not held_out and time.monotonic() < self._next_step_line:
            return
        self._next_step_line = time.monotonic() + STEP_SECONDS
        step = f"{record.step:,} / {self._total_steps:,}" if self._total_steps else record.step
        self._log.info("step %s: %s", step, held_out or _formatted(record.values, _STEP_METRICS))


def _formatted(values: Mapping[str, float], names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {values[name]:.4g}" for name in names if name in values)
