"""What in a run's measurements a person should be told of: pure watching, no storing.

Each kind is told once in a start of the run, at the point where it shows.
"""

from __future__ import annotations

import math
import shutil
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import METRICS, MetricsRecord
from sae_engine.schema.runs import AlertKind

FIRST_POINTS = 20
"""So many measurements belong to the beginning, in which much may happen."""
LOSS_MEMORY = 0.9
"""Weight of the past in the smoothed loss."""
LOSS_RISE = 1.5
"""A smoothed loss so many times its least one diverges."""
DEAD_SHARE = 0.3
DEAD_POINTS = 3
"""The share of dead latents must be above `DEAD_SHARE` in so many measurements in a row."""
DENSE_SHARE = 0.05
SPARSE_CODE = 0.02
"""Dense latents say something only where k is a smaller share of the latents than this."""
RECENT_POINTS = 10
REFERENCE_POINTS = 200
SLOW = 0.5
"""A recent speed that is a smaller share of the usual one has dropped."""
LEAST_FREE_BYTES = 2**30
CHECKPOINTS_TO_COME = 3
"""Room that should be left, in checkpoints."""


class Alert(NamedTuple):
    """What was noticed, in a sentence that says what can be done."""

    kind: AlertKind
    message: str
    step: int


class AlertWatch:
    """Looks at one run's measurements as they come."""

    def __init__(self, config: RunConfig) -> None:
        self._dense_matters = _code_share(config) < SPARSE_CODE
        self._told: set[AlertKind] = set()
        self._num_points = 0
        self._loss: float | None = None
        self._least_loss = math.inf
        self._dead_points = 0
        self._speeds: deque[float] = deque(maxlen=REFERENCE_POINTS)
        self._last: MetricsRecord | None = None

    def look(self, record: MetricsRecord) -> list[Alert]:
        """What this measurement shows for the first time."""
        found = [Alert(kind, message, record.step) for kind, message in self._signs(record)]
        new = [alert for alert in found if alert.kind not in self._told]
        self._told.update(alert.kind for alert in new)
        return new

    def look_at_disk(self, step: int, free: int, checkpoint: int) -> list[Alert]:
        """Whether the disk has room for what is to come; all in bytes."""
        if free >= max(LEAST_FREE_BYTES, CHECKPOINTS_TO_COME * checkpoint) or "disk" in self._told:
            return []
        self._told.add("disk")
        message = (
            f"Only {free / 2**30:.1f} GiB are free where runs are kept; delete runs or make room, "
            "before a checkpoint cannot be written."
        )
        return [Alert("disk", message, step)]

    def _signs(self, record: MetricsRecord) -> Iterator[tuple[AlertKind, str]]:
        strange = [name for name, value in record.values.items() if not math.isfinite(value)]
        if strange:
            names = " and ".join(METRICS[n].title if n in METRICS else n for n in strange)
            yield "non_finite", f"{names} stopped being finite; lower train.lr or look at the text."
        if "loss" in record.values:
            self._num_points += 1
            yield from self._divergence(record.values["loss"])
        yield from self._dead(record.values.get("frac_dead"))
        dense = record.values.get("frac_dense")
        if dense is not None and dense > DENSE_SHARE and self._dense_matters:
            yield (
                "dense_latents",
                f"{dense:.0%} of the latents fire on more than a tenth of all tokens; such latents "
                "rarely mean one thing. Lower train.lr or sae.k.",
            )
        yield from self._slowness(record)

    def _divergence(self, loss: float) -> Iterator[tuple[AlertKind, str]]:
        if not math.isfinite(loss):
            return
        before = loss if self._loss is None else self._loss
        self._loss = LOSS_MEMORY * before + (1 - LOSS_MEMORY) * loss
        if self._num_points <= FIRST_POINTS:
            return
        self._least_loss = min(self._least_loss, self._loss)
        if self._loss > LOSS_RISE * self._least_loss:
            yield (
                "divergence",
                f"The loss rose to {self._loss:.3g} after it had been {self._least_loss:.3g}; "
                "lower train.lr or set train.grad_clip.",
            )

    def _dead(self, share: float | None) -> Iterator[tuple[AlertKind, str]]:
        if share is None:
            return
        self._dead_points = self._dead_points + 1 if share > DEAD_SHARE else 0
        if self._dead_points >= DEAD_POINTS:
            yield (
                "dead_latents",
                f"{share:.0%} of the latents are dead; lower train.lr, raise train.auxk_alpha, or "
                "take fewer latents.",
            )

    def _slowness(self, record: MetricsRecord) -> Iterator[tuple[AlertKind, str]]:
        last, self._last = self._last, record
        if last is None or record.tokens <= last.tokens or record.time <= last.time:
            return
        self._speeds.append((record.tokens - last.tokens) / (record.time - last.time))
        if len(self._speeds) < FIRST_POINTS + RECENT_POINTS:
            return
        speeds = list(self._speeds)
        recent, usual = median(speeds[-RECENT_POINTS:]), median(speeds[:-RECENT_POINTS])
        if recent < SLOW * usual:
            yield (
                "throughput",
                f"Training slowed from {usual:,.0f} to {recent:,.0f} tokens/s; something else may "
                "use the device or the disk.",
            )


def _code_share(config: RunConfig) -> float:
    """k over the number of latents; 0 where that is not known before the model is."""
    return config.sae.k / config.sae.d_sae if config.sae.d_sae else 0.0


def free_bytes(folder: Path) -> int:
    """Of the disk that a folder is on."""
    return shutil.disk_usage(folder).free
