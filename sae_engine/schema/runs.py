"""Runs as they travel over REST: what starts one, how it stands, what it reports."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from sae_engine.schema.config import PretrainedFormat, RunConfig
from sae_engine.schema.shape import Shape, StoredShape, examples

RunStatus = Literal["queued", "running", "stopping", "finished", "stopped", "failed", "interrupted"]


RunSort = Literal["created", "name", "status", "fvu", "l0", "ce_delta"]
AlertKind = Literal[
    "non_finite", "divergence", "dead_latents", "dense_latents", "throughput", "disk", "no_progress"
]
"""What a run is watched for."""

ENDED: frozenset[RunStatus] = frozenset({"finished", "stopped", "failed", "interrupted"})


class RunCreate(StoredShape):
    """What starts a run: a preset, overrides on it, or both."""

    model_config = examples(
        {"preset": "tiny", "config": {"sae": {"k": 16}}, "name": "k 16", "tags": ["k-study"]},
        {"config": {"model": {"layer": 4}, "data": {"dataset": "notes/corpus.jsonl"}}},
    )
    preset: str | None = None
    """Name of a preset; unset starts from the defaults of `RunConfig`."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Partial overrides, nested like `RunConfig`."""
    name: str | None = Field(default=None, max_length=200)
    tags: list[str] = Field(default_factory=list, max_length=50)
    notes: str = Field(default="", max_length=20_000)
    cloned_from: str | None = Field(default=None, max_length=40)
    """Id of the run whose settings these were at first."""


class SweepCreate(RunCreate):
    """What starts a sweep: a run's preset and overrides, and a grid of values to try over them."""

    model_config = examples(
        {
            "preset": "tiny",
            "name": "k and layer",
            "grid": {"sae.k": [16, 32], "model.layer": [1, 2]},
        }
    )
    grid: dict[str, list[Any]] = Field(min_length=1, max_length=20)
    """Values to try by field, such as `{"sae.k": [16, 32]}`; every combination becomes a run."""


class ImportCreate(RunCreate):
    """What registers an SAE that was trained elsewhere: a run that evaluates and indexes it."""

    model_config = examples(
        {"path": "gemma-scope/params.npz", "model": "google/gemma-2-2b", "layer": 12}
    )
    path: str = Field(min_length=1, max_length=500)
    """Its file or folder: a run's, or one of SAELens, Gemma Scope or dictionary_learning."""
    format: PretrainedFormat | None = None
    """How to read it; unset finds out from the files."""
    model: str = Field(min_length=1, max_length=500)
    """The language model whose activations it reads, as in `model.name`."""
    layer: int | None = Field(default=None, ge=0)
    """Give this or `hook_point`."""
    site: Literal["resid_post", "mlp_out", "attn_out"] = "resid_post"
    hook_point: str | None = Field(default=None, max_length=300)


class RunPatch(StoredShape):
    """What may be changed about a run after it was made; unset stays as it is."""

    model_config = examples({"tags": ["k-study", "keep"], "notes": "Dies at layer 4."})
    name: str | None = Field(default=None, min_length=1, max_length=200)
    tags: list[str] | None = Field(default=None, max_length=50)
    notes: str | None = Field(default=None, max_length=20_000)
    archived: bool | None = None
    queue_position: int | None = Field(default=None, ge=1)
    """Where a waiting run stands in the queue; 1 is started next."""


class Progress(Shape):
    step: int
    total_steps: int | None
    tokens: int
    total_tokens: int | None
    tokens_per_second: float | None
    eta_seconds: float | None
    phase: str | None
    """What the run is doing now, in words."""


class RunError(Shape):
    type: str
    message: str
    log_tail: str


class Run(Shape):
    id: str
    name: str
    status: RunStatus
    config: RunConfig
    tags: list[str]
    notes: str
    archived: bool
    group_id: str | None
    cloned_from: str | None
    device: str | None
    queue_position: int | None
    """Its place among the runs that wait, from 1; null once it has started."""
    waiting_for: str | None
    """Why it has not started yet, in words."""
    alerts: list[AlertKind]
    """What was noticed about it, in order of appearance, each kind once."""
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    progress: Progress
    metrics: dict[str, float | Literal["NaN", "Infinity", "-Infinity"]]
    """The latest value of each metric."""
    error: RunError | None
    resumable: bool
    revision: int = 0
    """Number of the last thing that was told of it; its events go on from there."""


class Sweep(Shape):
    """Runs that were started together; those that share model and text share its passes."""

    id: str
    runs: list[Run]


class RunPage(Shape):
    items: list[Run]
    next_cursor: str | None
    total: int
    """Runs on all pages."""


class TagCount(Shape):
    """A tag and how many runs carry it."""

    tag: str
    num_runs: int


MetricValue = float | Literal["NaN", "Infinity", "-Infinity"] | None
"""A number, a named non-finite, or null where it was not measured at that step."""


class MetricsSeries(Shape):
    step: list[int]
    tokens: list[int]
    time: list[float]
    series: dict[str, list[MetricValue]]
    total_points: int
    returned_points: int


class Notice(Shape):
    """A message that a run left for people."""

    step: int | None
    level: Literal["info", "warning"]
    kind: AlertKind | None
    """What it is an alert about; null for other messages."""
    message: str
    created_at: datetime


class Snapshot(Shape):
    """One browsable feature index of a run."""

    step: int
    tokens: int
    index_tokens: int
    created_at: datetime
    final: bool


class StatusEvent(Shape):
    """A run's state changed."""

    status: RunStatus
    step: int
    """Steps done. A run that resumes measures anew from its checkpoint on: points of later steps
    are dropped when a metrics event of an earlier step comes.
    """
    error: RunError | None


class MetricsEvent(Shape):
    """What was measured at one step; what comes later about the same step adds to it."""

    step: int
    tokens: int
    time: float
    values: dict[str, float | Literal["NaN", "Infinity", "-Infinity"]]
