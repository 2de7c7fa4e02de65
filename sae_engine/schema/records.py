"""What a training run yields while it works, and what each of its numbers means."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict


class StopRequest(StrEnum):
    """What a run has been asked to do; the engine polls it at least once a step."""

    NONE = "none"
    STOP = "stop"
    """End soon, keep a usable SAE and build its features."""
    FORCE = "force"
    """End soon, keep the checkpoint, build nothing."""


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PhaseRecord(Record):
    """The run entered a phase that takes a while; `phase` is a sentence fragment for people."""

    kind: Literal["phase"] = "phase"
    phase: str


class PlanRecord(Record):
    """What the run resolved before its first step."""

    kind: Literal["plan"] = "plan"
    total_steps: int
    total_tokens: int
    d_in: int
    d_sae: int
    lr: float
    device: str


class StartRecord(Record):
    """Training begins or goes on after `step`; what was reported of later steps, before the run was
    cut off, holds no more.
    """

    kind: Literal["start"] = "start"
    step: int
    """0 for a run from its beginning."""
    tokens: int


class MetricsRecord(Record):
    """Values measured at one step. `time` is seconds of training before it, earlier starts
    included.
    """

    kind: Literal["metrics"] = "metrics"
    step: int
    tokens: int
    time: float
    values: dict[str, float]
    """Metric name to value; may hold NaN and infinities."""


class SnapshotRecord(Record):
    """A feature index was published under `features/<step>/`."""

    kind: Literal["snapshot"] = "snapshot"
    step: int
    tokens: int
    index_tokens: int
    seconds: float
    """How long the build took."""
    final: bool


class NoticeRecord(Record):
    """Something a person should know: a capped setting, a dropped row, a number gone wrong."""

    kind: Literal["notice"] = "notice"
    level: Literal["info", "warning"]
    message: str
    step: int | None = None


class EndRecord(Record):
    """The last record of a run that ended by itself or on request."""

    kind: Literal["end"] = "end"
    reason: Literal["finished", "stopped"]
    step: int
    tokens: int


class FailureRecord(Record):
    """The last record of a run that cannot go on, while others on the same pass may."""

    kind: Literal["failure"] = "failure"
    error_type: str
    message: str
    step: int


AnyRecord = (
    PhaseRecord
    | PlanRecord
    | StartRecord
    | MetricsRecord
    | SnapshotRecord
    | NoticeRecord
    | EndRecord
    | FailureRecord
)


class Metric(NamedTuple):
    """One metric's definition, shown wherever its value is shown."""

    title: str
    help: str
    unit: str = ""
    better: Literal["lower", "higher", ""] = ""


METRICS: dict[str, Metric] = {
    "loss": Metric(
        "Loss",
        "Reconstruction error over the input's variance, plus the weighted AuxK and L1 terms; "
        "what the optimizer minimizes.",
        better="lower",
    ),
    "fvu": Metric(
        "FVU",
        "Fraction of variance unexplained on the training batch: squared error over squared "
        "distance from the batch mean. Predicting the mean gives 1, a perfect copy 0.",
        better="lower",
    ),
    "l0": Metric("L0", "Mean number of latents with a positive activation per token.", "latents"),
    "auxk_loss": Metric(
        "AuxK loss",
        "How badly the dead latents alone reconstruct what the live ones miss, over that "
        "residual's variance; 0 when nothing is dead.",
        better="lower",
    ),
    "l1_loss": Metric("L1", "Mean sum of the kept activations per token, before its weight."),
    "frac_dead": Metric(
        "Dead latents",
        "Share of latents that have not fired for `train.dead_feature_threshold` training tokens.",
        better="lower",
    ),
    "lr": Metric("Learning rate", "Adam's step size."),
    "grad_norm": Metric("Gradient norm", "Norm of the whole gradient before clipping."),
    "tokens_per_second": Metric(
        "Throughput",
        "Training tokens per second since the last start, evaluation and snapshots not counted.",
        "tokens/s",
        "higher",
    ),
    "lm_share": Metric(
        "Language-model share", "Share of the training time spent extracting activations."
    ),
    "buffer_share": Metric(
        "Buffer share", "Share of the training time spent shuffling activations."
    ),
    "sae_share": Metric("SAE share", "Share of the training time spent in the SAE's steps."),
    "eval_fvu": Metric(
        "Held-out FVU",
        "Fraction of variance unexplained over the whole held-out set.",
        better="lower",
    ),
    "eval_l0": Metric("Held-out L0", "Mean active latents per held-out token.", "latents"),
    "eval_cosine_similarity": Metric(
        "Held-out cosine",
        "Mean cosine between an activation and its reconstruction.",
        better="higher",
    ),
    "frac_alive": Metric(
        "Alive latents",
        "Share of latents that fired at least once on the held-out set.",
        better="higher",
    ),
    "frac_dense": Metric(
        "Dense latents",
        "Share of latents that fired on more than a tenth of the held-out tokens.",
        better="lower",
    ),
    "ce_delta": Metric(
        "CE delta",
        "Cross-entropy of the language model with reconstructions spliced in, minus its own, on "
        "held-out text.",
        "nats/token",
        "lower",
    ),
    "ce_loss_score": Metric(
        "CE score", "1 - CE delta / (CE with the site zeroed - CE); 1 is lossless.", better="higher"
    ),
    "ce_loss_score_mean": Metric(
        "CE score (mean)", "1 - CE delta / (CE with the site at its mean - CE).", better="higher"
    ),
}
