"""The machine and what a run takes of it, as they travel over REST."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from sae_engine.schema.config import RunConfig
from sae_engine.schema.runs import RunStatus
from sae_engine.schema.shape import Shape


class Health(Shape):
    status: Literal["ok"]
    version: str


class Preset(Shape):
    """A named recipe."""

    name: str
    description: str
    config: RunConfig


class EstimateRequest(Shape):
    """The run whose needs are asked for: a preset, overrides on it, or both, as in `RunCreate`; or,
    with a grid, the sweep, as in `SweepCreate`.
    """

    preset: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, list[Any]] = Field(default_factory=dict, max_length=20)


class MemoryPart(Shape):
    """One of the things that are in memory at the same time."""

    name: str
    bytes: int


class Estimate(Shape):
    """What a run will take."""

    d_in: int
    """Width of the activations."""
    d_sae: int
    parameters: int
    """Of the SAE."""
    model_parameters: int
    """Of the language model's layers that are loaded to train."""
    tokens: int | None
    """Tokens trained on; null where it depends on the length of the text."""
    steps: int | None
    checkpoint_bytes: int
    disk_bytes: int
    """At most, in the run's folder."""
    memory: list[MemoryPart]
    """Of the device, in the phase that takes most; on a CPU, over what the program itself takes."""
    memory_bytes: int
    device: Literal["cpu", "gpu"]
    """Which device the memory is of."""


class Forecast(Estimate):
    """What a run or a sweep will take on this server.

    Of a sweep, memory is that of the pass that takes most, disk that of all runs, and sizes and
    steps are those of the first run.
    """

    num_runs: int
    num_passes: int
    """How often the language model reads the text for them."""
    slot_device: str
    """The device that it would get, such as `cuda:0`."""
    memory_free_bytes: int
    memory_total_bytes: int
    disk_free_bytes: int
    seconds: float | None
    """How long it will train, passes one after another; null where nothing like it was measured on
    this device.
    """
    seconds_from: str | None
    """What the time was told from, in words."""
    warnings: list[str]
    """What does not fit, a sentence each."""


class Device(Shape):
    """A GPU; what it does not tell is null."""

    id: str
    name: str
    utilization: float | None
    """Share of the time it was busy, from 0 to 1."""
    memory_used_bytes: int
    memory_total_bytes: int
    temperature_celsius: float | None


class Slot(Shape):
    """A place where one process trains at a time."""

    id: str
    """The device, and a number where it has several slots: `cuda:0`, `cpu`, `cpu#2`."""
    device: str
    runs: list[str]
    """Ids of the runs that are trained there now."""


class System(Shape):
    """The machine that serves and trains, as it is now."""

    version: str
    supervises: bool
    """Whether this server starts the queued runs; of several on one data folder only one does."""
    devices: list[Device]
    slots: list[Slot]
    num_cpus: int
    cpu_utilization: float
    """From 0 to 1, over all CPUs."""
    memory_used_bytes: int
    memory_total_bytes: int
    disk_free_bytes: int
    """Where the runs are kept."""
    disk_total_bytes: int
    queue: dict[RunStatus, int]
    """How many runs are in each state; states without a run are absent."""
