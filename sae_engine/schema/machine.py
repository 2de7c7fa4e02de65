"""The machine and the resources that a run needs, over REST."""

from __future__ import annotations

from datetime import datetime
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


class Environment(Shape):
    """What a run was started with, recorded at its last start."""

    recorded_at: datetime
    version: str
    """Of SAE Workbench."""
    commit: str | None
    """Of its git checkout, with `-dirty` if files were changed; null without a checkout."""
    python: str
    packages: dict[str, str]
    """Versions by package."""
    command: list[str]
    """Of the run's process."""
    hostname: str
    system: str
    cpu: str
    num_cpus: int
    memory_bytes: int
    gpus: list[str]
    """Names of the GPUs that the run's process could use."""


class EstimateRequest(Shape):
    """The run to estimate, as in `RunCreate`, or, with a grid, the sweep, as in `SweepCreate`."""

    preset: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, list[Any]] = Field(default_factory=dict, max_length=20)


class MemoryPart(Shape):
    """One part of the memory in use at the same time."""

    name: str
    bytes: int


class Estimate(Shape):
    """Size, memory and disk space of a run."""

    d_in: int
    """Width of the activations."""
    d_sae: int
    parameters: int
    """Of the SAE."""
    model_parameters: int
    """Of the language model's layers that training loads."""
    tokens: int | None
    """Training tokens, none for an imported SAE; null if that depends on the length of the text."""
    steps: int | None
    checkpoint_bytes: int
    disk_bytes: int
    """Upper bound for the run's folder without its log; without snapshots if `steps` is null."""
    memory: list[MemoryPart]
    """Device memory in the phase that needs most; on a CPU, without the program itself."""
    memory_bytes: int
    device: Literal["cpu", "gpu"]
    """Kind of device that the memory is on."""


class Forecast(Estimate):
    """Resources and time that a run or a sweep will take on this server.

    For a sweep, memory is that of the largest pass, disk that of all runs, and sizes and steps are
    those of the first run.
    """

    num_runs: int
    num_passes: int
    """Number of passes of the language model over the text."""
    slot_device: str
    """Device that it would run on, such as `cuda:0`."""
    memory_free_bytes: int
    memory_total_bytes: int
    disk_free_bytes: int
    seconds: float | None
    """Training time, with passes one after another; null without a similar run on this device."""
    seconds_from: str | None
    """What the time is based on, in words."""
    warnings: list[str]
    """What does not fit, and what should be known about the text, one sentence each."""


class Device(Shape):
    """A GPU; values that it does not report are null."""

    id: str
    name: str
    utilization: float | None
    """Share of time busy, 0 to 1."""
    memory_used_bytes: int | None
    """Null also if the GPU has no memory of its own."""
    memory_total_bytes: int | None
    temperature_celsius: float | None


class Slot(Shape):
    """A place for one training process."""

    id: str
    """Device, with a number if it has several slots: `cuda:0`, `cpu`, `cpu#2`; on a machine of a
    cluster after its name: `gpu1/cuda:0`.
    """
    device: str
    runs: list[str]
    """Ids of the runs training there now."""
    problem: str | None = None
    """Why the last run that was started there did not begin, as one sentence; null once one has."""


class System(Shape):
    """Current state of the server's machine."""

    version: str
    supervises: bool
    """Whether this server starts queued runs; only one server per data folder does."""
    problem: str | None
    """Why no run can be started at present, as one sentence; null if runs can be started."""
    devices: list[Device]
    """The GPUs that runs can use; those of a cluster if runs train on one."""
    slots: list[Slot]
    num_cpus: int
    cpu_utilization: float
    """0 to 1, over all CPUs."""
    memory_used_bytes: int
    memory_total_bytes: int
    disk_free_bytes: int
    """On the disk that holds the runs."""
    disk_total_bytes: int
    queue: dict[RunStatus, int]
    """Number of runs by state; states without runs are absent."""
