"""`RunConfig`: everything that decides what a run computes.

One tree serves the YAML file, the command line, the REST body, the browser's form and one JSON
column. A knob's default, bound, unit and help stand once, under its field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sae_engine.schema.shape import refuse_nul

PositiveInt = Annotated[int, Field(ge=1)]
PretrainedFormat = Literal[
    "sae-workbench", "saelens", "sparsify", "gemma-scope", "dictionary_learning"
]


class Section(BaseModel):
    """A frozen group of fields that refuses names it does not know."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    _no_nul = field_validator("*", mode="after")(refuse_nul)


class ModelConfig(Section):
    """Which language model, and where in it the activations are read."""

    name: str = Field(default="tiny-gemma2", min_length=1, max_length=500)
    """`tiny-gemma2` (embedded, works offline), a Hugging Face model id, or a local folder."""
    layer: int = Field(default=2, ge=0)
    """Index of the decoder layer, counted from 0."""
    site: Literal["resid_post", "mlp_out", "attn_out"] = "resid_post"
    """Residual stream after the layer, or what its MLP or attention adds to the residual stream."""
    hook_point: str | None = Field(default=None, max_length=300)
    """Path of any module, such as `model.layers.15`; overrides `layer` and `site`."""
    hook_io: Literal["output", "input"] = "output"
    """With `hook_point`: read what the module returns or what it is given."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the language model; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """`auto` takes a GPU if there is one."""
    device_map: Literal["auto"] | None = None
    """`auto` spreads a large language model over several GPUs."""

    @property
    def deepest_layer(self) -> int | None:
        """The decoder layer that is read, or that the hook point lies in; None if it names none."""
        if self.hook_point is None:
            return self.layer
        number = re.search(r"\.(\d+)(?=\.|$)", self.hook_point)
        return int(number[1]) if number else None


class DataConfig(Section):
    """Which text the language model reads."""

    dataset: str = Field(default="python-stdlib", min_length=1, max_length=500)
    """`python-stdlib` (embedded), a Hugging Face dataset id, or a path to `.txt`, `.jsonl` or
    `.parquet`.
    """
    subset: str | None = Field(default=None, max_length=200)
    """The dataset's configuration name on Hugging Face, such as `sample-10BT`."""
    split: str = Field(default="train", min_length=1, max_length=100)
    """The dataset's split to read."""
    text_column: str = Field(default="text", min_length=1, max_length=200)
    """The column that holds the text."""
    streaming: bool = True
    """Read a Hugging Face dataset while training instead of downloading it first."""
    num_samples: PositiveInt | None = None
    """Number of documents to use at most; unset uses all."""
    ctx_len: int = Field(default=256, ge=8, le=131_072)
    """Tokens in a row that the language model reads at once, its BOS included."""
    seed: int = Field(default=0, ge=0)
    """Decides the order of the activations; independent of the SAE's own seed."""
    heldout_tokens: int = Field(default=200_000, ge=1_000)
    """Tokens of text kept out of training, for evaluation."""
    activations: str | None = Field(default=None, max_length=500)
    """An activation file (`.safetensors`) or a folder of such files to train on, instead of
    reading text with the language model while training.
    """


class SAEConfig(Section):
    """The sparse autoencoder's shape."""

    d_sae: PositiveInt | None = None
    """Number of latents. Give this or `expansion_factor`."""
    expansion_factor: PositiveInt | None = None
    """Number of latents as a multiple of the activation's width. Give this or `d_sae`."""
    k: PositiveInt = 32
    """Latents kept active per token."""
    tied_weights: bool = False
    """Keep the encoder equal to the decoder's transpose for good, not only at the start."""
    normalize_decoder: bool = False
    """Hold decoder rows at unit norm during training. The saved file has unit-norm rows either
    way.
    """
    pretrained: str | None = Field(default=None, max_length=500)
    """A trained SAE to evaluate and look into, instead of training one: a run's folder, or a file
    or folder of SAELens, Gemma Scope or dictionary_learning.
    """
    pretrained_format: PretrainedFormat | None = None
    """How to read `pretrained`; unset finds out from the files."""

    @model_validator(mode="after")
    def _shape_is_possible(self) -> Self:
        if self.tied_weights and not self.normalize_decoder:
            raise ValueError(
                "sae.tied_weights needs sae.normalize_decoder: without unit-norm rows the saved "
                "encoder and "
                "decoder would differ by the rows' norms."
            )
        if self.d_sae is not None and self.expansion_factor is not None:
            raise ValueError("Give sae.d_sae or sae.expansion_factor, not both.")
        if self.d_sae is not None and self.k > self.d_sae:
            raise ValueError(
                f"sae.k = {self.k} is larger than sae.d_sae = {self.d_sae}; lower k or raise d_sae."
            )
        return self

    def num_latents(self, d_in: int) -> int:
        """Resolve the number of latents for activations of width `d_in`; raises `ValueError` if
        k exceeds it.
        """
        d_sae = self.d_sae or (self.expansion_factor or 8) * d_in
        if self.k > d_sae:
            raise ValueError(
                f"sae.k = {self.k} is larger than the {d_sae} latents ({self.expansion_factor} x "
                f"{d_in}); "
                "lower k or raise the expansion factor."
            )
        return d_sae


class TrainConfig(Section):
    """How long and how the SAE is trained, and how often the run looks at itself."""

    total_tokens: int | None = Field(default=None, ge=1_000)
    """Tokens to train on. Give this or `num_epochs`."""
    num_epochs: PositiveInt | None = None
    """Passes over the training text; needs a dataset that ends. Give this or `total_tokens`."""
    batch_size_tokens: int = Field(default=1024, ge=16, le=1_048_576)
    """Tokens in one optimizer step."""
    lr: float | None = Field(default=None, gt=0, le=1)
    """Peak learning rate of Adam; unset is chosen from the width and the token budget."""
    lr_schedule: Literal["linear_decay", "cosine", "constant"] = "linear_decay"
    """After the warm-up: constant and then linear to zero over the last fifth, a cosine to zero,
    or constant.
    """
    warmup_steps: int = Field(default=100, ge=0)
    """Steps over which the learning rate rises from zero; at most a tenth of the run is used."""
    grad_clip: float | None = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient; unset never clips."""
    auxk_alpha: float = Field(default=1 / 32, ge=0)
    """Weight of the auxiliary loss that revives dead latents."""
    l1_lambda: float = Field(default=0.0, ge=0)
    """Weight of an L1 penalty on the kept activations; TopK needs none."""
    dead_feature_threshold: PositiveInt | None = None
    """Tokens without firing after which a latent counts as dead; unset is min(10M, total tokens
    / 128).
    """
    log_every: PositiveInt = 10
    """Steps between points on the curves."""
    eval_every: PositiveInt = 200
    """Steps between held-out evaluations."""
    eval_tokens: int = Field(default=50_000, ge=1_000)
    """Held-out tokens in an evaluation while training; the last one uses all of
    `data.heldout_tokens`.
    """
    ce_every: PositiveInt | None = None
    """Steps between measurements of the cross-entropy delta; unset measures it at the end only."""
    ce_tokens: int = Field(default=16_384, ge=256)
    """Held-out tokens over which the cross-entropy delta is measured."""
    save_every: PositiveInt = 500
    """Steps between checkpoints."""
    snapshot_every: PositiveInt | None = 150
    """Steps between feature snapshots that can be browsed while the run trains; unset makes
    none.
    """
    tensorboard: bool = False
    """Also write TensorBoard event files into the run's folder."""
    wandb_project: str | None = Field(default=None, max_length=200)
    """Also log to this Weights & Biases project; the key comes from `WANDB_API_KEY`."""

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.total_tokens is not None and self.num_epochs is not None:
            raise ValueError("Give train.total_tokens or train.num_epochs, not both.")
        return self


class IndexConfig(Section):
    """How much text the feature index covers."""

    tokens: int = Field(default=200_000, ge=1_000)
    """Tokens of held-out text in the final index."""
    snapshot_tokens: int = Field(default=50_000, ge=1_000)
    """Tokens in an index made while the run trains."""


class RunConfig(Section):
    """The whole configuration of one run."""

    name: str = Field(default="", max_length=200)
    """What the run is called; empty is named after its recipe and time."""
    seed: int = Field(default=0, ge=0)
    """Seed of the SAE's initial weights."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    sae: SAEConfig = SAEConfig()
    train: TrainConfig = TrainConfig()
    index: IndexConfig = IndexConfig()

    @property
    def pass_key(self) -> str:
        """Equal for runs that can be trained together on one pass of the language model.

        They may differ in anything but the model (its hook point may differ), the text, the
        batch size, and whether they train at all.
        """
        same = self.model_dump(
            mode="json",
            include={
                "model": {"name", "dtype", "device", "device_map"},
                "data": True,
                "train": {"batch_size_tokens"},
            },
        )
        same["trains"] = self.sae.pretrained is None
        return json.dumps(same, sort_keys=True)

    @property
    def hook_name(self) -> str:
        """Short name of where activations are read, such as `layer 3 resid_post`."""
        if self.model.hook_point:
            return f"{self.model.hook_point} {self.model.hook_io}"
        return f"layer {self.model.layer} {self.model.site}"


def by_pass(configs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """Runs that are trained together, by pass; one whose SAE is trained already stands alone."""
    shared: dict[str, list[RunConfig]] = {}
    for number, config in enumerate(configs):
        key = f"alone {number}" if config.sae.pretrained else config.pass_key
        shared.setdefault(key, []).append(config)
    return list(shared.values())
