"""How a run learns that it should end.

Read by `loop`, `run` and `pretrained`, which also pass it into long work as `check_stop`.
"""

from __future__ import annotations

from collections.abc import Callable

from sae_engine.interrupt import Interruption
from sae_engine.schema.records import StopRequest


class Halted(Interruption):
    """Unwinds long work, such as an evaluation, when a run is asked to end."""


class StopSwitch:
    """Polls whether a run should end; calling it inside long work raises `Halted` if so."""

    def __init__(self, should_stop: Callable[[], StopRequest]) -> None:
        self._should_stop = should_stop
        self.finishing = False
        """The run is already ending: only a forced stop interrupts it now."""

    @property
    def is_on(self) -> bool:
        request = self._should_stop()
        return request is StopRequest.FORCE or (request is StopRequest.STOP and not self.finishing)

    def __call__(self) -> None:
        if self.is_on:
            raise Halted
