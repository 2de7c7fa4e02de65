"""Runs over REST: requests that start them, their state, metrics and events."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from sae_engine.schema.config import PretrainedFormat, RunConfig
from sae_engine.schema.fields import Value, values_of
from sae_engine.schema.shape import Shape, StoredShape, examples

RunStatus = Literal["queued", "running", "stopping", "finished", "stopped", "failed", "interrupted"]
RunSort = Literal["created", "name", "status", "fvu", "l0", "ce_delta"]
AlertKind = Literal[
    "non_finite",
    "divergence",
    "dead_latents",
    "dense_latents",
    "few_tokens",
    "heldout_overlap",
    "throughput",
    "disk",
    "no_progress",
    "node_lost",
]
"""Kinds of alerts that a run can raise."""

MeasuredValue = float | Literal["NaN", "Infinity", "-Infinity"]
"""A number, or the name of a non-finite one, which JSON cannot write as a number."""
MetricValue = MeasuredValue | None
"""Null if the metric was not measured at that step."""

ENDED: frozenset[RunStatus] = frozenset({"finished", "stopped", "failed", "interrupted"})


Tag = Annotated[str, Field(max_length=100)]


class RunCreate(StoredShape):
    """A run to start: a preset, overrides of it, or both."""

    model_config = examples(
        {"preset": "tiny", "config": {"sae": {"k": 16}}, "name": "k 16", "tags": ["k-study"]},
        {"config": {"model": {"layer": 4}, "data": {"dataset": "notes/corpus.jsonl"}}},
    )
    preset: str | None = Field(default=None, max_length=200)
    """Name of a preset; if unset, the defaults of `RunConfig`."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Partial overrides, nested like `RunConfig`."""
    name: str | None = Field(default=None, max_length=200)
    tags: list[Tag] = Field(default_factory=list, max_length=50)
    notes: str = Field(default="", max_length=20_000)
    cloned_from: str | None = Field(default=None, max_length=40)
    """Id of the run whose settings this run started from."""


class SweepCreate(RunCreate):
    """A sweep to start: a preset, overrides of it, and a grid of values to try."""

    model_config = examples(
        {
            "preset": "tiny",
            "name": "k and layer",
            "grid": {"sae.k": [16, 32], "model.layer": [1, 2]},
        }
    )
    grid: dict[str, list[Any]] = Field(min_length=1, max_length=20)
    """Values to try per field, such as `{"sae.k": [16, 32]}`; every combination becomes a run."""


class ImportCreate(RunCreate):
    """An SAE trained elsewhere to import; the run evaluates and indexes it."""

    model_config = examples(
        {"path": "gemma-scope/params.npz", "model": "google/gemma-2-2b", "layer": 12},
        {"path": "hub:google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"},
    )
    path: str = Field(min_length=1, max_length=500)
    """SAE file, folder or zip: of a run, SAELens, sparsify, Gemma Scope, Qwen-Scope or
    dictionary_learning; or one on the hub, as `hub:OWNER/NAME/PATH`. May be relative to the data
    folder.
    """
    format: PretrainedFormat | None = None
    """Format of the files; if unset, detected."""
    model: str | None = Field(default=None, min_length=1, max_length=500)
    """Language model whose activations the SAE reads, as in `model.name`; if unset, the one that
    the SAE's files name.
    """
    layer: int | None = Field(default=None, ge=0)
    """Give this or `hook_point`; if both are unset, the SAE's files decide."""
    site: Literal["resid_post", "mlp_out", "attn_out"] | None = None
    """If unset, the SAE's files decide, or `resid_post` if `layer` is given."""
    hook_point: str | None = Field(default=None, max_length=300)
    hook_io: Literal["output", "input"] | None = None
    """With `hook_point`: as in `model.hook_io`."""


class RunPatch(StoredShape):
    """Changes to an existing run; unset fields stay as they are."""

    model_config = examples({"tags": ["k-study", "keep"], "notes": "Dies at layer 4."})
    name: str | None = Field(default=None, min_length=1, max_length=200)
    tags: list[Tag] | None = Field(default=None, max_length=50)
    notes: str | None = Field(default=None, max_length=20_000)
    archived: bool | None = None
    queue_position: int | None = Field(default=None, ge=1)
    """Position in the queue of a queued run; 1 starts next."""


class Progress(Shape):
    step: int
    total_steps: int | None
    tokens: int
    total_tokens: int | None
    tokens_per_second: float | None
    eta_seconds: float | None
    phase: str | None
    """Current phase, in words."""


class RunError(Shape):
    type: str
    message: str
    log_tail: str


class Run(Shape):
    id: str
    name: str
    status: RunStatus
    config: RunConfig
    chosen: dict[str, Any] = Field(default_factory=dict)
    """By path, the values of settings that `config` leaves to the run, such as `train.lr`; empty
    before it has chosen. `sae.k` is null for an imported SAE that has none.
    """
    tags: list[str]
    notes: str
    archived: bool
    group_id: str | None
    cloned_from: str | None
    device: str | None
    queue_position: int | None
    """Position among the queued runs, from 1; null once started."""
    waiting_for: str | None
    """Why it has not started yet, in words; null otherwise."""
    alerts: list[AlertKind]
    """Kinds of alerts raised, in order of first appearance."""
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    progress: Progress
    metrics: dict[str, MeasuredValue]
    """Latest value of each metric."""
    error: RunError | None
    resumable: bool
    revision: int = 0
    """Number of the run's latest change; its event stream continues from there."""

    @property
    def settings(self) -> dict[str, Value]:
        """The value of every setting, by path, as the run uses it."""
        return values_of(self.config) | self.chosen

    @property
    def d_sae(self) -> int | None:
        """Number of latents; None if a multiple of the activation's width that is not known yet."""
        return self.chosen.get("sae.d_sae", self.config.sae.d_sae)


class Sweep(Shape):
    """Runs started together; runs with the same model and text share one pass over it."""

    id: str
    runs: list[Run]


class RunPage(Shape):
    items: list[Run]
    next_cursor: str | None
    total: int
    """Runs on all pages."""


class TagCount(Shape):
    """A tag and the number of runs that have it."""

    tag: str
    num_runs: int


class MetricsSeries(Shape):
    step: list[int]
    tokens: list[int]
    time: list[float]
    series: dict[str, list[MetricValue]]
    """Values by metric; null if not measured at that step."""
    total_points: int
    returned_points: int


class Notice(Shape):
    """A message of a run to its users."""

    step: int | None
    level: Literal["info", "warning"]
    kind: AlertKind | None
    """Kind of alert; null for other messages."""
    message: str
    created_at: datetime


class Snapshot(Shape):
    """A feature index of a run."""

    step: int
    tokens: int
    index_tokens: int
    created_at: datetime
    final: bool


class StatusEvent(Shape):
    """A change of a run's status."""

    status: RunStatus
    step: int
    """Steps done. A resumed run measures again from its checkpoint: when a metrics event of an
    earlier step arrives, drop the points of later steps.
    """
    error: RunError | None


class MetricsEvent(Shape):
    """Metrics of one step; later events of the same step add to it."""

    step: int
    tokens: int
    time: float
    values: dict[str, MeasuredValue]
