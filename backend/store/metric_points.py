"""A run's measurements by column: built from rows, concatenated, sliced, packed into blocks.

`metrics` stores a run's newest points as rows and all earlier ones as blocks; readers get both
concatenated. Steps and counts are exact. NaN and infinities are values, distinct from a metric that
was not measured at a step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Row(NamedTuple):
    """One point as stored in the table `metrics`."""

    step: int
    tokens: int
    time: float
    revision: int
    values: str
    """Metric to value, as JSON extended by NaN and infinities."""


class Curve(NamedTuple):
    """One metric at n points."""

    values: Floats
    """[n]; NaN where it was not measured."""
    measured: Flags
    """[n]"""


@dataclass(frozen=True)
class Points:
    """n points, ordered by step."""

    step: Ints
    tokens: Ints
    time: Floats
    """[n], seconds of training so far."""
    revision: Ints
    """[n], the run's revision that stored them."""
    curves: Mapping[str, Curve]
    """By metric; each was measured at least once."""

    def __len__(self) -> int:
        return len(self.step)

    def at(self, where: Flags | NDArray[np.intp] | slice) -> Points:
        """The points selected by a mask, indices or a slice."""
        cut = {n: Curve(c.values[where], c.measured[where]) for n, c in self.curves.items()}
        return Points(
            self.step[where],
            self.tokens[where],
            self.time[where],
            self.revision[where],
            {name: curve for name, curve in cut.items() if curve.measured.any()},
        )

    def values_at(self, index: int) -> dict[str, float]:
        """The metrics measured at one point."""
        return {
            name: float(curve.values[index])
            for name, curve in self.curves.items()
            if curve.measured[index]
        }

    def latest(self) -> dict[str, float]:
        """The last measured value of each metric."""
        return {name: float(c.values[c.measured][-1]) for name, c in self.curves.items()}

    def rows(self) -> list[Row]:
        """The points as rows of the table `metrics`."""
        columns = (self.step.tolist(), self.tokens.tolist(), self.time.tolist())
        return [
            Row(step, tokens, time, revision, packed_values(self.values_at(index)))
            for index, (step, tokens, time, revision) in enumerate(
                zip(*columns, self.revision.tolist(), strict=True)
            )
        ]


def packed_values(values: Mapping[str, float]) -> str:
    return json.dumps(values, separators=(",", ":"))


def points_of(rows: Sequence[Row]) -> Points:
    """Rows, ordered by step, as columns."""
    measured: list[dict[str, float]] = json.loads(f"[{','.join(row.values for row in rows)}]")
    names = dict.fromkeys(name for values in measured for name in values)
    return Points(
        np.array([row.step for row in rows], np.int64),
        np.array([row.tokens for row in rows], np.int64),
        np.array([row.time for row in rows], np.float64),
        np.array([row.revision for row in rows], np.int64),
        {
            name: Curve(
                np.array([values.get(name, np.nan) for values in measured], np.float64),
                np.array([name in values for values in measured], np.bool_),
            )
            for name in names
        },
    )


def joined(parts: Sequence[Points]) -> Points:
    """Concatenate points."""
    if len(parts) == 1:
        return parts[0]
    total = sum(map(len, parts))
    curves: dict[str, Curve] = {}
    start = 0
    for part in parts:
        end = start + len(part)
        for name, curve in part.curves.items():
            if name not in curves:
                curves[name] = Curve(np.full(total, np.nan), np.zeros(total, np.bool_))
            curves[name].values[start:end] = curve.values
            curves[name].measured[start:end] = curve.measured
        start = end
    empty = points_of([])
    return Points(
        np.concatenate([empty.step, *(part.step for part in parts)]),
        np.concatenate([empty.tokens, *(part.tokens for part in parts)]),
        np.concatenate([empty.time, *(part.time for part in parts)]),
        np.concatenate([empty.revision, *(part.revision for part in parts)]),
        curves,
    )


def packed(points: Points) -> bytes:
    """A block: the columns as safetensors.

    A curve with gaps is stored as its measured values and a bit mask; values that float32 holds
    exactly are stored as float32.
    """
    columns: dict[str, NDArray[np.generic]] = {
        "step": points.step,
        "tokens": points.tokens,
        "time": points.time,
        "revision": points.revision,
    }
    for number, (name, curve) in enumerate(points.curves.items()):
        columns[f"v{number:04}{name}"] = _narrowed(curve.values[curve.measured])
        if not curve.measured.all():
            columns[f"m{number:04}{name}"] = np.packbits(curve.measured)
    return save(columns)


def unpacked(block: bytes) -> Points:
    """The points of a block."""
    columns = load(block)
    num_points = len(columns["step"])
    curves: dict[str, Curve] = {}
    for key in sorted(columns):
        if key[0] != "v":
            continue
        values = columns[key].astype(np.float64)
        bits = columns.get(f"m{key[1:]}")
        measured = np.ones(num_points, np.bool_)
        if bits is not None:
            measured = np.unpackbits(bits, count=num_points).view(np.bool_)
            spread = np.full(num_points, np.nan)
            spread[measured] = values
            values = spread
        curves[key[5:]] = Curve(values, measured)
    return Points(columns["step"], columns["tokens"], columns["time"], columns["revision"], curves)


def _narrowed(values: Floats) -> NDArray[np.generic]:
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    return narrow if np.array_equal(narrow.astype(np.float64), values, equal_nan=True) else values
