"""What a run measured, column by column: made of rows, joined, cut, and packed into blocks.

The repository keeps a run's newest points as rows and all before them as blocks; who reads gets the
two joined. Steps and counts are exact, NaN and infinities are values, and what was not measured at
a step is none of them.
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
    """One point as it is stored alone."""

    step: int
    tokens: int
    time: float
    revision: int
    values: str
    """Metric to value, as JSON that also has NaN and infinities."""


class Curve(NamedTuple):
    """One metric at n points."""

    values: Floats
    """[n]; NaN also where it was not measured."""
    measured: Flags
    """[n]"""


@dataclass(frozen=True)
class Points:
    """n points in order of their steps."""

    step: Ints
    tokens: Ints
    time: Floats
    """[n], seconds of training before them."""
    revision: Ints
    """[n], the run's when they were told."""
    curves: Mapping[str, Curve]
    """By metric; every one was measured at some point."""

    def __len__(self) -> int:
        return len(self.step)

    def at(self, where: Flags | NDArray[np.intp] | slice) -> Points:
        """Some of the points."""
        cut = {n: Curve(c.values[where], c.measured[where]) for n, c in self.curves.items()}
        return Points(
            self.step[where],
            self.tokens[where],
            self.time[where],
            self.revision[where],
            {name: curve for name, curve in cut.items() if curve.measured.any()},
        )

    def values_at(self, place: int) -> dict[str, float]:
        """What was measured at one of the points."""
        return {
            name: float(curve.values[place])
            for name, curve in self.curves.items()
            if curve.measured[place]
        }

    def rows(self) -> list[Row]:
        """The points as they are stored alone."""
        columns = (self.step.tolist(), self.tokens.tolist(), self.time.tolist())
        return [
            Row(step, tokens, time, revision, packed_values(self.values_at(place)))
            for place, (step, tokens, time, revision) in enumerate(
                zip(*columns, self.revision.tolist(), strict=True)
            )
        ]


def packed_values(values: Mapping[str, float]) -> str:
    return json.dumps(values, separators=(",", ":"))


def points_of(rows: Sequence[Row]) -> Points:
    """Rows, in order of their steps, as columns."""
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
    """Points one after the other."""
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
    nothing = points_of([])
    return Points(
        np.concatenate([nothing.step, *(part.step for part in parts)]),
        np.concatenate([nothing.tokens, *(part.tokens for part in parts)]),
        np.concatenate([nothing.time, *(part.time for part in parts)]),
        np.concatenate([nothing.revision, *(part.revision for part in parts)]),
        curves,
    )


def packed(points: Points) -> bytes:
    """A block: the columns as safetensors. A curve with gaps has its values alone, and where they
    belong as bits; values that float32 holds exactly take half the room.
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
