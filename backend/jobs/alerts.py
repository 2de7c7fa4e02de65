"""Alerts: detects problems in a run's measurements.

Fed with records by the recorder, which stores the alerts. Each kind is raised once per process, at
the point where it appears.
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
from sae_engine.schema.records import METRICS, TOP_TOKENS, MetricsRecord
from sae_engine.schema.runs import AlertKind

FIRST_POINTS = 20
"""Number of measurements at the start of a run in which no divergence or slowdown is detected."""
LOSS_MEMORY = 0.9
"""Weight of earlier values in the smoothed loss."""
LOSS_RISE = 1.5
"""The loss diverges when its smoothed value exceeds its minimum by this factor."""
DEAD_SHARE = 0.3
DEAD_POINTS = 3
"""Consecutive measurements in which the share of dead latents must exceed `DEAD_SHARE`."""
DENSE_SHARE = 0.05
SPARSE_CODE = 0.02
"""Dense latents matter only if k is a smaller share of the latents than this."""
TOP_SHARE = 0.5
"""Share of the variance that is too much for the top `TOP_TOKENS` of the tokens."""
MUCH_OVERLAP = 0.1
"""Share of the held-out text in the training text; the embedded corpus has .007."""
RECENT_POINTS = 10
REFERENCE_POINTS = 200
SLOW = 0.5
"""A slowdown is a recent speed below this share of the usual one."""
LEAST_FREE_BYTES = 2**30
LEAST_FREE_CHECKPOINTS = 3
"""Number of further checkpoints that the disk should have room for."""


class Alert(NamedTuple):
    """A problem, with one sentence that suggests a remedy."""

    kind: AlertKind
    message: str
    step: int


class AlertWatch:
    """Watches one run's measurements."""

    def __init__(self, config: RunConfig) -> None:
        self._dense_matters = _code_share(config) < SPARSE_CODE
        self._norm_multiple = config.data.max_norm_multiple
        self._raised: set[AlertKind] = set()
        self._num_points = 0
        self._loss: float | None = None
        self._least_loss = math.inf
        self._dead_points = 0
        self._speeds: deque[float] = deque(maxlen=REFERENCE_POINTS)

    def look(self, record: MetricsRecord) -> list[Alert]:
        """Problems that appear with this measurement for the first time."""
        found = [Alert(kind, message, record.step) for kind, message in self._signs(record)]
        new = [alert for alert in found if alert.kind not in self._raised]
        self._raised.update(alert.kind for alert in new)
        return new

    def look_at_disk(self, step: int, free: int, checkpoint: int) -> list[Alert]:
        """Whether the disk is nearly full; `free` space and size of a `checkpoint` in bytes."""
        enough = max(LEAST_FREE_BYTES, LEAST_FREE_CHECKPOINTS * checkpoint)
        if free >= enough or "disk" in self._raised:
            return []
        self._raised.add("disk")
        message = (
            f"Only {free / 2**30:.1f} GiB are free on the disk that holds the runs; delete runs or "
            "free some space, or checkpoints will fail."
        )
        return [Alert("disk", message, step)]

    def _signs(self, record: MetricsRecord) -> Iterator[tuple[AlertKind, str]]:
        non_finite = [name for name, value in record.values.items() if _is_broken(name, value)]
        if non_finite:
            names = " and ".join(METRICS[n].title if n in METRICS else n for n in non_finite)
            yield "non_finite", f"{names} stopped being finite; lower train.lr or check the text."
        if "loss" in record.values:
            self._num_points += 1
            yield from self._divergence(record.values["loss"])
        yield from self._dead(record.values.get("frac_dead"))
        dense = record.values.get("frac_dense")
        if dense is not None and dense > DENSE_SHARE and self._dense_matters:
            yield (
                "dense_latents",
                f"{dense:.0%} of the latents fire on more than a tenth of all tokens; such latents "
                "rarely have a single meaning. Lower train.lr or sae.k.",
            )
        share = record.values.get("top_token_share", 0.0)
        if share > TOP_SHARE:
            yield "few_tokens", self._few_tokens(share)
        overlap = record.values.get("heldout_overlap", 0.0)
        if overlap > MUCH_OVERLAP:
            yield (
                "heldout_overlap",
                f"{overlap:.0%} of the held-out text also occurs in the training text, so the "
                "held-out metrics are better than those on new text; remove near-duplicates from "
                "the dataset.",
            )
        yield from self._slowness(record)

    def _few_tokens(self, share: float) -> str:
        multiple = self._norm_multiple
        remedy = "set it" if multiple is None else f"lower it from {multiple:g}"
        return (
            f"{TOP_TOKENS:.0%} of the held-out tokens hold {share:.0%} of the variance, so FVU "
            "says little about the others; to leave such outliers out, use "
            f"data.max_norm_multiple ({remedy})."
        )

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
                f"The loss rose from {self._least_loss:.3g} to {self._loss:.3g}; lower train.lr or "
                "set train.grad_clip.",
            )

    def _dead(self, share: float | None) -> Iterator[tuple[AlertKind, str]]:
        if share is None:
            return
        self._dead_points = self._dead_points + 1 if share > DEAD_SHARE else 0
        if self._dead_points >= DEAD_POINTS:
            yield (
                "dead_latents",
                f"{share:.0%} of the latents are dead; lower train.lr, raise train.auxk_alpha, or "
                "use fewer latents.",
            )

    def _slowness(self, record: MetricsRecord) -> Iterator[tuple[AlertKind, str]]:
        speed = record.values.get("tokens_per_second")  # as its curve shows it
        if speed is None or not math.isfinite(speed):
            return
        self._speeds.append(speed)
        if len(self._speeds) < FIRST_POINTS + RECENT_POINTS:
            return
        speeds = list(self._speeds)
        recent, usual = median(speeds[-RECENT_POINTS:]), median(speeds[:-RECENT_POINTS])
        if recent < SLOW * usual:
            yield (
                "throughput",
                f"Training slowed from {usual:,.0f} to {recent:,.0f} tokens/s; another program "
                "may be using the device or the disk.",
            )


def _is_broken(metric: str, value: float) -> bool:
    """Whether a value is not finite although its metric is defined."""
    may_be_undefined = metric in METRICS and METRICS[metric].may_be_undefined
    return not math.isfinite(value) and not (math.isnan(value) and may_be_undefined)


def _code_share(config: RunConfig) -> float:
    """k over the number of latents; 0 if that number depends on the model."""
    return config.sae.k / config.sae.d_sae if config.sae.d_sae else 0.0


def free_bytes(folder: Path) -> int:
    """Free space on the disk of a folder."""
    return shutil.disk_usage(folder).free
