"""Calls about the server: health, presets, estimates, the machine."""

from __future__ import annotations

from frontend.api.connection import Connection
from sae_engine.schema.machine import EstimateRequest, Forecast, Health, Preset, System
from sae_engine.schema.playground import InferenceStatus
from sae_engine.schema.texts import TextPreview


class MachineCalls(Connection):
    """The server, its machine, and what a run would need."""

    def health(self) -> Health:
        """Whether the server is up; needs no token."""
        return self._call(Health, "GET", "/health")

    def presets(self) -> list[Preset]:
        """The presets in the order of the launch page."""
        return self._call(list[Preset], "GET", "/config/presets")

    def inference(self) -> InferenceStatus:
        """State of the process that holds the language model."""
        return self._call(InferenceStatus, "GET", "/inference")

    def system(self) -> System:
        """Devices, slots, CPU, memory and disk right now."""
        return self._call(System, "GET", "/system")

    def preview(self, body: EstimateRequest) -> list[TextPreview]:
        """How each dataset of a run would be read."""
        return self._call(list[TextPreview], "POST", "/config/preview", body=body)

    def estimate(self, body: EstimateRequest) -> Forecast:
        """Memory, disk and time that a run or a sweep would take on the device it would get."""
        return self._call(Forecast, "POST", "/config/estimate", body=body)
