"""Records that a training run yields, and the definitions of its metrics."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from sae_engine.schema.config import Division, PretrainedFormat, RunConfig
from sae_engine.schema.fields import Value, value_of

OPEN = (None, "auto")
"""Values of settings that leave the choice to the run."""


class StopRequest(StrEnum):
    """Whether a run was asked to end; the engine polls it at least once per step."""

    NONE = "none"
    STOP = "stop"
    """End soon, but save a usable SAE and build its features."""
    FORCE = "force"
    """End soon with a checkpoint only; build no features."""


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PhaseRecord(Record):
    """The run entered a phase that takes a while."""

    kind: Literal["phase"] = "phase"
    phase: str
    """Shown to users, such as `loading the language model`."""
    done: int | None = None
    """Parts of the phase that are done, where they are counted."""
    total: int | None = None
    unit: str = ""
    """What the parts are, such as `tokens`, where that means something to users."""

    @property
    def text(self) -> str:
        """The phase with its progress, such as `measuring cross-entropy 3 of 10`."""
        if self.done is None:
            return self.phase
        return f"{self.phase} {self.done:,} of {self.total:,} {self.unit}".rstrip()


class PlanRecord(Record):
    """What follows from the configuration, known before the first step."""

    kind: Literal["plan"] = "plan"
    total_steps: int
    total_tokens: int
    d_in: int
    d_sae: int
    k: int | None = None
    """Active latents per token; None for an imported SAE that does not fix their number."""
    lr: float
    device: str
    dtype: str | None = None
    """Of the language model; None if none is loaded."""
    readers: int | None = None
    documents: Division | None = None
    dead_feature_threshold: int | None = None
    pretrained_format: PretrainedFormat | None = None

    def chosen(self, config: RunConfig) -> dict[str, Value]:
        """By path, the values of the settings that `config` leaves to the run: unset or `auto`.
        `sae.k` is None for an imported SAE that does not fix it.
        """
        values: dict[str, Value] = {
            "model.device": self.device,
            "model.dtype": self.dtype,
            "model.readers": self.readers,
            "data.documents": self.documents,
            "sae.pretrained_format": self.pretrained_format,
        }
        if config.sae.pretrained is None:
            values |= {
                "sae.d_sae": self.d_sae,
                "train.total_tokens": self.total_tokens,
                "train.lr": self.lr,
                "train.dead_feature_threshold": self.dead_feature_threshold,
            }
        open_ones = {path: v for path, v in values.items() if value_of(config, path) in OPEN}
        found: dict[str, Value] = {p: value for p, value in open_ones.items() if value is not None}
        has_k = self.k is not None or config.sae.pretrained is None
        return found if has_k else {**found, "sae.k": None}


class StartRecord(Record):
    """Training starts, or resumes after `step`; records of later steps, from before the
    interruption, are void.
    """

    kind: Literal["start"] = "start"
    step: int
    """0 for a run that starts from the beginning."""
    tokens: int


class MetricsRecord(Record):
    """Values measured at one step."""

    kind: Literal["metrics"] = "metrics"
    step: int
    tokens: int
    time: float
    """Seconds of training so far, over all starts of the run."""
    values: dict[str, float]
    """By metric name; may be NaN or infinite."""


class SnapshotRecord(Record):
    """A feature index was published under `features/<step>/`."""

    kind: Literal["snapshot"] = "snapshot"
    step: int
    tokens: int
    index_tokens: int
    seconds: float
    """Duration of the build."""
    final: bool


class NoticeRecord(Record):
    """Something the user should know, such as a capped setting or a dropped row."""

    kind: Literal["notice"] = "notice"
    level: Literal["info", "warning"]
    message: str
    step: int | None = None


class EndRecord(Record):
    """The last record of a run that finished or was stopped."""

    kind: Literal["end"] = "end"
    reason: Literal["finished", "stopped"]
    step: int
    tokens: int


class FailureRecord(Record):
    """The last record of a run that cannot continue; others on the same pass can."""

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
    """A metric's definition, shown with its values."""

    title: str
    help: str
    unit: str = ""
    better: Literal["lower", "higher", ""] = ""
    may_be_undefined: bool = False
    """NaN then means that the value is not defined; elsewhere it means that training broke down."""


TOP_TOKENS = 0.01
"""Share of the held-out tokens whose share of the variance `top_token_share` measures."""

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
        "distance from the batch mean. Predicting the mean gives 1, a perfect copy 0. Not defined "
        "if all activations are the same.",
        better="lower",
        may_be_undefined=True,
    ),
    "l0": Metric("L0", "Mean number of latents with a positive activation per token.", "latents"),
    "auxk_loss": Metric(
        "AuxK loss",
        "Squared error of the dead latents' reconstruction of what the live ones miss, over that "
        "residual's variance; 0 when no latent is dead.",
    ),
    "l1_loss": Metric("L1", "Mean sum of the kept activations per token, without its weight."),
    "frac_dead": Metric(
        "Dead latents",
        "Share of latents that have not fired for `train.dead_feature_threshold` training tokens.",
        better="lower",
    ),
    "lr": Metric("Learning rate", "Adam's step size."),
    "grad_norm": Metric("Gradient norm", "Norm of the whole gradient before clipping."),
    "tokens_per_second": Metric(
        "Throughput",
        "Training tokens per second over the last half minute or so, without evaluations and "
        "snapshots.",
        "tokens/s",
        "higher",
    ),
    "lm_share": Metric(
        "Language-model share", "Share of recent training time spent extracting activations."
    ),
    "buffer_share": Metric(
        "Buffer share", "Share of recent training time spent shuffling activations."
    ),
    "sae_share": Metric("SAE share", "Share of recent training time spent in the SAE's steps."),
    "eval_fvu": Metric(
        "Held-out FVU",
        "Fraction of variance unexplained on held-out text: during training on its first "
        "`train.eval_tokens` tokens, at the end on `data.heldout_tokens`. Not defined if all "
        "activations are the same.",
        better="lower",
        may_be_undefined=True,
    ),
    "eval_l0": Metric("Held-out L0", "Mean active latents per held-out token.", "latents"),
    "eval_cosine_similarity": Metric(
        "Held-out cosine",
        "Mean cosine between an activation and its reconstruction.",
        better="higher",
    ),
    "frac_alive": Metric(
        "Alive latents",
        "Share of latents that fired at least once on the same held-out tokens, dense ones "
        "included; it grows with their number.",
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
        "CE score",
        "1 - CE delta / (CE with the site zeroed - CE); 1 is lossless. Not defined if zeroing the "
        "site changes nothing.",
        better="higher",
        may_be_undefined=True,
    ),
    "ce_loss_score_mean": Metric(
        "CE score (mean)",
        "1 - CE delta / (CE with the site at its mean - CE). Not defined if that changes nothing.",
        better="higher",
        may_be_undefined=True,
    ),
    "outlier_tokens": Metric(
        "Outliers in training",
        "Training tokens left out so far, because the norm of their activation exceeds "
        "`data.max_norm_multiple` times the median norm.",
        "tokens",
    ),
    "eval_outlier_tokens": Metric(
        "Held-out outliers",
        "Held-out tokens left out of this evaluation, for the same reason.",
        "tokens",
    ),
    "heldout_overlap": Metric(
        "Held-out text seen in training",
        "Share of the held-out runs of 13 tokens that also occur in the training text read so far. "
        "If it is large, the held-out metrics are better than those on new text.",
    ),
    "cpu_share": Metric(
        "CPU", "Share of the CPUs that the run's process used since the reading before."
    ),
    "memory_gib": Metric("Memory", "Memory that the run's process holds.", "GiB"),
    "gpu_share": Metric("GPU utilization", "Share of recent time in which the run's GPU worked."),
    "gpu_memory_gib": Metric(
        "GPU memory", "Memory in use on the run's GPU, by all programs.", "GiB"
    ),
    "top_token_share": Metric(
        "Variance in the top 1% of tokens",
        "Share of the held-out variance in the 1% of the tokens that are farthest from the mean. "
        "If it is large, FVU says little about the other tokens.",
        may_be_undefined=True,
    ),
}
