"""Calls about the server: health, presets, estimates, the machine."""

from __future__ import annotations

from pydantic import TypeAdapter

from frontend.api.connection import Connection
from frontend.api.sending import sent
from sae_engine.schema.machine import EstimateRequest, Forecast, Health, Preset, System
from sae_engine.schema.playground import InferenceStatus

_PRESETS = TypeAdapter(list[Preset])


class MachineCalls(Connection):
    """What is there, and what a run would take of it."""

    def health(self) -> Health:
        """Whether the server is up; needs no token."""
        return self._read(Health, "/health")

    def presets(self) -> list[Preset]:
        """The recipes a run can start from, in the order they are offered."""
        return _PRESETS.validate_json(self._send("GET", "/config/presets").content)

    def inference(self) -> InferenceStatus:
        """What the process that holds the language model is doing."""
        return self._read(InferenceStatus, "/inference")

    def system(self) -> System:
        """Devices, slots, CPU, memory and disk as they are now."""
        return self._read(System, "/system")

    def estimate(self, body: EstimateRequest) -> Forecast:
        """What a run or a sweep would take on the device that it would get."""
        answer = self._send("POST", "/config/estimate", body=sent(body))
        return Forecast.model_validate_json(answer.content)
