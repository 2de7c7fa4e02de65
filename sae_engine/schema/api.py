"""The shapes that travel over REST. Nothing here has a second definition elsewhere."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sae_engine.schema.config import PretrainedFormat, RunConfig

RunStatus = Literal["queued", "running", "stopping", "finished", "stopped", "failed", "interrupted"]
ENDED: frozenset[RunStatus] = frozenset({"finished", "stopped", "failed", "interrupted"})

FeatureState = Literal["alive", "dead", "dense"]
FeatureSort = Literal["density", "max_activation", "index", "label"]
SortOrder = Literal["asc", "desc"]
TokenMatch = Literal["fold", "exact", "prefix", "substring"]
LookupRank = Literal["f1", "lift", "recall", "precision", "max"]
ExportFormat = Literal["saelens", "html", "jsonl", "neuronpedia", "parquet"]

DENSE_FRACTION = 0.1
"""A latent that fires on a larger share of tokens is `dense`."""


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Health(Shape):
    status: Literal["ok"]
    version: str


class Preset(Shape):
    """A named recipe."""

    name: str
    description: str
    config: RunConfig


class RunCreate(Shape):
    """What starts a run: a preset, overrides on it, or both."""

    preset: str | None = None
    """Name of a preset; unset starts from the defaults of `RunConfig`."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Partial overrides, nested like `RunConfig`."""
    name: str | None = Field(default=None, max_length=200)
    tags: list[str] = Field(default_factory=list, max_length=50)
    notes: str = Field(default="", max_length=20_000)


class EstimateRequest(Shape):
    """The run whose needs are asked for: a preset, overrides on it, or both, as in `RunCreate`."""

    preset: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)


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


class SweepCreate(RunCreate):
    """What starts a sweep: a run's preset and overrides, and a grid of values to try over them."""

    grid: dict[str, list[Any]] = Field(min_length=1, max_length=20)
    """Values to try by field, such as `{"sae.k": [16, 32]}`; every combination becomes a run."""


class ImportCreate(RunCreate):
    """What registers an SAE that was trained elsewhere: a run that evaluates and indexes it."""

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


class RunPatch(Shape):
    """What may be changed about a run after it was made; unset stays as it is."""

    name: str | None = Field(default=None, min_length=1, max_length=200)
    tags: list[str] | None = Field(default=None, max_length=50)
    notes: str | None = Field(default=None, max_length=20_000)
    archived: bool | None = None


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
    device: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    progress: Progress
    metrics: dict[str, float | Literal["NaN", "Infinity", "-Infinity"]]
    """The latest value of each metric."""
    error: RunError | None
    resumable: bool


class Sweep(Shape):
    """Runs that were started together; those that share model and text share its passes."""

    id: str
    runs: list[Run]


class RunPage(Shape):
    items: list[Run]
    next_cursor: str | None


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
    message: str
    created_at: datetime


class Snapshot(Shape):
    """One browsable feature index of a run."""

    step: int
    tokens: int
    index_tokens: int
    created_at: datetime
    final: bool


class Density(Shape):
    fraction: float
    fired: int
    seen: int


class Feature(Shape):
    index: int
    density: Density
    max_activation: float
    state: FeatureState
    label: str | None


class Context(Shape):
    """A piece of one row around a peak activation."""

    tokens: list[str]
    activations: list[float]
    activation: float
    """The peak."""
    peak: int
    """Where the peak stands in `tokens`."""
    position: int
    """Where the peak stands in its row; 0 is the first token after BOS."""
    row: int
    copies: int
    """How many contexts with the same tokens were folded into this one, itself included."""


class FeatureRow(Feature):
    """A feature in a list, with a glimpse of what it is about."""

    example: Context | None
    top_tokens: list[str]


class FeaturePage(Shape):
    items: list[FeatureRow]
    next_cursor: str | None
    total: int
    snapshot: int
    """Step of the index that answered."""


class Histogram(Shape):
    """Counts of positive activations between neighboring edges."""

    edges: list[float]
    counts: list[int]


class Interval(Shape):
    """Examples whose activation lies in one slice of the feature's range."""

    low: float
    high: float
    share: float
    """Share of the feature's positive activations that lie in it."""
    contexts: list[Context]


class TokenStatistics(Shape):
    """How a token and a latent go together over the index corpus."""

    id: int
    text: str
    count: int
    """Positions that hold the token and on which the latent is active."""
    f1: float
    lift: float
    recall: float
    precision: float
    mean_activation: float
    max_activation: float


class TokenLogit(Shape):
    id: int
    text: str
    value: float


class Logits(Shape):
    positive: list[TokenLogit]
    negative: list[TokenLogit]


class Neighbour(Shape):
    index: int
    cosine: float
    label: str | None


class FeatureDetail(Feature):
    snapshot: int
    histogram: Histogram
    contexts: list[Context]
    intervals: list[Interval]
    top_tokens: list[TokenStatistics]
    logits: Logits | None
    """Absent in a snapshot made while training."""
    neighbours: list[Neighbour] | None
    notes: str
    starred: bool


class LabelUpdate(Shape):
    label: str = Field(default="", max_length=500)
    notes: str = Field(default="", max_length=20_000)
    starred: bool = False


class MatchedToken(Shape):
    id: int
    text: str
    count: int
    """Positions in the index corpus; 0 says that the corpus does not contain it."""


class FeatureMatch(Shape):
    """A feature that answers a token lookup."""

    index: int
    f1: float
    lift: float
    recall: float
    precision: float
    mean_activation: float
    max_activation: float
    count: int
    density: float
    label: str | None
    example: Context | None


class LookupResult(Shape):
    tokens: list[MatchedToken]
    features: list[FeatureMatch]
    phrase: bool
    """The text is several tokens: statistics are over the positions of its last one."""
    count: int
    """Positions of the whole group, or of the phrase."""
    message: str | None
    """Why there are no features, in words; null when there are some."""
    suggestions: list[str]
    """For a text that does not occur: tokens that do and are spelled nearly so, nearest first."""
    snapshot: int


class Device(Shape):
    """A GPU; what it does not tell is null."""

    id: str
    name: str
    utilization: float | None
    """Share of the time it was busy, from 0 to 1."""
    memory_used_bytes: int
    memory_total_bytes: int
    temperature_celsius: float | None


class System(Shape):
    """The machine that serves and trains, as it is now."""

    version: str
    supervises: bool
    """Whether this server starts the queued runs; of several on one data folder only one does."""
    devices: list[Device]
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


class Problem(Shape):
    """An error body, `application/problem+json` (RFC 9457)."""

    model_config = ConfigDict(extra="allow")
    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] = Field(default_factory=lambda: list[FieldProblem]())


class FieldProblem(Shape):
    """One field of the request that is wrong."""

    field: str
    """Dotted name, such as `sae.k`."""
    message: str


Problem.model_rebuild()
