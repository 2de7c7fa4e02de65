"""Long work that says how far it is: generators that yield parts and return a result."""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple, TypeVar

from sae_engine.schema.records import PhaseRecord

_Result = TypeVar("_Result")


class Part(NamedTuple):
    """How much of the work is done."""

    done: int
    total: int
    unit: str = ""
    """What is counted, such as `tokens`; empty for parts that mean nothing to users."""


def result_of(work: Generator[Part, None, _Result]) -> _Result:
    """Do all of the work."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def phases(
    phase: str, work: Generator[Part, None, _Result]
) -> Generator[PhaseRecord, None, _Result]:
    """Do all of the work as a phase of a run, and report each part."""
    while True:
        try:
            done, total, unit = next(work)
        except StopIteration as end:
            return end.value
        yield PhaseRecord(phase=phase, done=done, total=total, unit=unit)
