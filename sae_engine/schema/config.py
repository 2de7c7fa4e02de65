"""`RunConfig`: everything that decides what a run computes.

The YAML file, the command line, the REST body, the launch form and the database column all use this
model. Each field's default, bounds, unit and help are written once, here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sae_engine.schema.shape import refuse_nul

MAX_STEPS = 2**31 - 1
"""The database's largest step."""
MAX_TOKENS = 10**15
MAX_SEED = 2**53 - 1
"""The largest integer that JavaScript represents exactly."""
PositiveInt = Annotated[int, Field(ge=1, le=MAX_STEPS)]
PretrainedFormat = Literal[
    "sae-workbench", "saelens", "sparsify", "gemma-scope", "qwen-scope", "dictionary_learning"
]
DEFAULT_NORM_MULTIPLE = 10.0
"""See `data.max_norm_multiple`; docs/decisions/0027-outliers.md has the measurements behind it."""


Division = Literal["paragraphs", "lines", "file"]
Role = Annotated[str, Field(min_length=1, max_length=100)]
TEXT_COLUMN = "text"


MAX_MIXTURE = 32
"""Maximum number of datasets in a mixture."""
MAX_LAYER = 10_000


class Section(BaseModel):
    """A frozen group of fields; unknown names are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    _no_nul = field_validator("*", mode="after")(refuse_nul)


class ModelConfig(Section):
    """Language model, and where its activations are read."""

    name: str = Field(default="tiny-gemma2", min_length=1, max_length=500)
    """`tiny-gemma2` (included; needs no network), a Hugging Face model id, or a local folder."""
    layer: int = Field(default=2, ge=0, le=MAX_LAYER)
    """Decoder layer, counted from 0."""
    site: Literal["resid_post", "mlp_out", "attn_out"] = "resid_post"
    """Residual stream after the layer, or what its MLP or attention adds to it."""
    hook_point: str | None = Field(default=None, max_length=300)
    """Module path, such as `model.layers.15`; overrides `layer` and `site`."""
    hook_io: Literal["output", "input"] = "output"
    """With `hook_point`: whether to read the module's output or its input."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the language model; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """Device for the language model and the SAE; `auto` is a GPU if available."""
    device_map: Literal["auto"] | None = None
    """`auto` splits the language model across all GPUs; if unset, it stays on `device`."""
    readers: int | None = Field(default=None, ge=1, le=64)
    """Processes that run the language model, the trainer's included; by default, one per GPU. The
    SAEs of a sweep are trained on the same devices.
    """

    @property
    def deepest_layer(self) -> int | None:
        """The decoder layer that is read or contains the hook point; None if there is none."""
        if self.hook_point is None:
            return self.layer
        number = re.search(r"\.(\d+)(?=\.|$)", self.hook_point)
        return int(number[1]) if number else None


def _require_one_column(data: MixturePart | DataConfig) -> None:
    """Raises `ValueError` if two columns are named; the default of `text_column` does not count."""
    if data.messages_column is not None and data.text_column != TEXT_COLUMN:
        raise ValueError("Set data.text_column or data.messages_column, not both.")


class MixturePart(Section):
    """One dataset of a mixture."""

    dataset: str = Field(min_length=1, max_length=500)
    """As `data.dataset`."""
    weight: float = Field(gt=0, le=1e9)
    """Its share of the tokens, relative to the other weights."""
    subset: str | None = Field(default=None, max_length=200)
    """As `data.subset`."""
    split: str = Field(default="train", min_length=1, max_length=100)
    """As `data.split`."""
    text_column: str = Field(default=TEXT_COLUMN, min_length=1, max_length=200)
    """As `data.text_column`."""
    messages_column: str | None = Field(default=None, min_length=1, max_length=200)
    """As `data.messages_column`."""

    @model_validator(mode="after")
    def _one_column(self) -> Self:
        _require_one_column(self)
        return self


class DataConfig(Section):
    """Text that the language model reads."""

    dataset: str = Field(default="python-stdlib", min_length=1, max_length=500)
    """`python-stdlib` (included), a Hugging Face dataset id, or a local file or folder: `.txt`,
    `.jsonl`, `.csv`, `.parquet`, `.arrow`, or any files of text, such as source code.
    """
    subset: str | None = Field(default=None, max_length=200)
    """Configuration of the Hugging Face dataset, such as `sample-10BT`."""
    split: str = Field(default="train", min_length=1, max_length=100)
    """Dataset split. In a local folder, the names of files and folders decide (`all` reads every
    file).
    """
    text_column: str = Field(default=TEXT_COLUMN, min_length=1, max_length=200)
    """Column that contains the text."""
    messages_column: str | None = Field(default=None, min_length=1, max_length=200)
    """Column of conversations: lists of messages with `role` and `content`, which the model's chat
    template turns into text. Replaces `text_column`.
    """
    train_roles: tuple[Role, ...] | None = None
    """Roles, such as `["assistant"]`: only messages with these roles are trained on, measured and
    indexed; the model reads the rest as context. If unset, every token counts.
    """
    documents: Division | None = None
    """What a document is in files of plain text: a paragraph, a line or the whole file; if unset,
    detected from the file.
    """
    mixture: tuple[MixturePart, ...] | None = None
    """Several datasets read as one, such as `[{"dataset": "a.jsonl", "weight": 2}, {"dataset":
    "b.jsonl", "weight": 1}]`; overrides `dataset`, `subset`, `split`, `text_column` and
    `messages_column`, which each of them can have. A dataset that runs out starts over.
    """
    streaming: bool = True
    """Stream a Hugging Face dataset during training instead of downloading it first."""
    num_samples: PositiveInt | None = None
    """Maximum number of documents of a dataset; if unset, all."""
    ctx_len: int = Field(default=256, ge=8, le=131_072)
    """Context length in tokens, including BOS."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of the order of the activations; independent of the SAE's `seed`."""
    shuffle_tokens: int = Field(default=2**20, ge=1, le=2**27)
    """Tokens of text whose rows are shuffled before the language model reads them. Up to 32,768,
    rows stay in order, as they do in activation files.
    """
    heldout_tokens: int = Field(default=200_000, ge=1_000, le=MAX_TOKENS)
    """Tokens held out from training, for evaluation and the feature index."""
    max_norm_multiple: float | None = Field(default=DEFAULT_NORM_MULTIPLE, gt=1, le=1e6)
    """Leave out tokens, such as attention sinks, whose activation's norm exceeds this multiple of
    the median norm; if unset, none.
    """
    activations: str | None = Field(default=None, max_length=500)
    """Train on a saved activation file (`.safetensors`), or a folder of them, instead of running
    the language model.
    """

    @field_validator("mixture", mode="before")
    @classmethod
    def _is_list(cls, value: object) -> object:
        size = len(cast(list[object], value)) if isinstance(value, list | tuple) else 0
        if value is not None and not 0 < size <= MAX_MIXTURE:
            raise ValueError(
                f"Write a list of 1 to {MAX_MIXTURE} datasets, such as "
                '[{"dataset": "a.jsonl", "weight": 2}, {"dataset": "b.jsonl", "weight": 1}].'
            )
        return cast(object, value)

    @field_validator("train_roles", mode="before")
    @classmethod
    def _are_roles(cls, value: object) -> object:
        roles = value.split(",") if isinstance(value, str) else value
        if not isinstance(roles, list | tuple):
            return roles
        named = [role.strip() if isinstance(role, str) else role for role in cast(list[Any], roles)]
        if not named or not all(named):
            raise ValueError('Write a list of roles, such as ["assistant"].')
        return named

    @model_validator(mode="after")
    def _columns_fit(self) -> Self:
        if self.train_roles and not any(one.messages_column for one in self.datasets):
            raise ValueError(
                "data.train_roles needs conversations; name their column in data.messages_column."
            )
        if self.mixture is None:
            _require_one_column(self)
        return self

    @property
    def datasets(self) -> list[DataConfig]:
        """The configuration of each dataset alone."""
        if self.mixture is None:
            return [self]
        return [
            self.model_copy(update=part.model_dump(exclude={"weight"}) | {"mixture": None})
            for part in self.mixture
        ]

    @property
    def weights(self) -> list[float]:
        """The weight of each of `datasets`."""
        return [1.0] if self.mixture is None else [part.weight for part in self.mixture]

    @property
    def title(self) -> str:
        """The names of the datasets."""
        return " + ".join(config.dataset for config in self.datasets)


class SAEConfig(Section):
    """Size and constraints of the sparse autoencoder."""

    d_sae: PositiveInt | None = None
    """Number of latents. Set this or `expansion_factor`."""
    expansion_factor: PositiveInt | None = None
    """Number of latents as a multiple of the activation width. Set this or `d_sae`; if neither is
    set, 8.
    """
    k: PositiveInt = 32
    """Active latents per token. Of an imported SAE, its own k; not used if it has none."""
    tied_weights: bool = False
    """Keep the encoder equal to the decoder's transpose throughout training, not only at the
    start.
    """
    normalize_decoder: bool = False
    """Keep decoder rows at unit norm during training. The saved SAE has unit-norm rows either
    way.
    """
    pretrained: str | None = Field(default=None, max_length=500)
    """Evaluate and index this trained SAE instead of training one: a run's folder; a file or folder
    of SAELens, sparsify, Gemma Scope, Qwen-Scope or dictionary_learning; or one on the hub, as
    `hub:OWNER/NAME/PATH`.
    """
    pretrained_format: PretrainedFormat | None = None
    """Format of `pretrained`; if unset, detected from the files."""

    @model_validator(mode="after")
    def _shape_is_possible(self) -> Self:
        if self.tied_weights and not self.normalize_decoder:
            raise ValueError(
                "sae.tied_weights needs sae.normalize_decoder: without unit-norm rows, the saved "
                "encoder and decoder would differ by the rows' norms."
            )
        if self.d_sae is not None and self.expansion_factor is not None:
            raise ValueError("Set sae.d_sae or sae.expansion_factor, not both.")
        if self.d_sae is not None and self.k > self.d_sae:
            raise ValueError(
                f"sae.k = {self.k} is larger than sae.d_sae = {self.d_sae}; lower k or raise d_sae."
            )
        return self

    def of_loaded(self, d_sae: int, k: int | None) -> SAEConfig:
        """This section with the size of the SAE that was loaded from `pretrained`; `k` keeps its
        value, at most `d_sae`, if the SAE has none.
        """
        size = {"d_sae": d_sae, "expansion_factor": None, "k": k or min(self.k, d_sae)}
        return self.model_copy(update=size)

    def num_latents(self, d_in: int) -> int:
        """Number of latents for activation width `d_in`; raises `ValueError` if k exceeds it."""
        factor = self.expansion_factor or 8
        d_sae = self.d_sae or factor * d_in
        if self.k > d_sae:
            raise ValueError(
                f"sae.k = {self.k} is larger than the {d_sae} latents ({factor} x "
                f"{d_in}); lower k or raise the expansion factor."
            )
        return d_sae


class TrainConfig(Section):
    """Training budget, optimizer, and how often to log, evaluate and save."""

    total_tokens: int | None = Field(default=None, ge=1_000, le=MAX_TOKENS)
    """Training tokens. Set this or `num_epochs`."""
    num_epochs: PositiveInt | None = None
    """Passes over the training text; needs a finite dataset. Set this or `total_tokens`."""
    batch_size_tokens: int = Field(default=1024, ge=16, le=1_048_576)
    """Tokens per optimizer step."""
    lr: float | None = Field(default=None, gt=0, le=1)
    """Peak learning rate of Adam; if unset, chosen from the SAE's size and the number of steps."""
    lr_schedule: Literal["linear_decay", "cosine", "constant"] = "linear_decay"
    """After warm-up: constant with a linear decay to zero over the last fifth, a cosine decay to
    zero, or constant.
    """
    warmup_steps: int = Field(default=100, ge=0, le=MAX_STEPS)
    """Steps over which the learning rate rises from zero; limited to a tenth of the run."""
    grad_clip: float | None = Field(default=1.0, gt=0)
    """Maximum gradient norm; if unset, gradients are not clipped."""
    auxk_alpha: float = Field(default=1 / 32, ge=0)
    """Weight of the auxiliary loss that revives dead latents."""
    l1_lambda: float = Field(default=0.0, ge=0)
    """Weight of an L1 penalty on the active latents; TopK does not need one."""
    dead_feature_threshold: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    """Tokens without firing after which a latent counts as dead; if unset, 1/128 of the training
    tokens, at most 10M.
    """
    log_every: PositiveInt = 10
    """Steps between logged points."""
    eval_every: PositiveInt = 200
    """Steps between evaluations on held-out text."""
    eval_tokens: int = Field(default=50_000, ge=1_000, le=MAX_TOKENS)
    """Held-out tokens per evaluation during training; the final evaluation uses all of
    `data.heldout_tokens`.
    """
    ce_every: PositiveInt | None = None
    """Steps between measurements of the cross-entropy delta; if unset, only at the end."""
    ce_tokens: int = Field(default=16_384, ge=256, le=MAX_TOKENS)
    """Held-out tokens per measurement of the cross-entropy delta."""
    save_every: PositiveInt = 500
    """Steps between checkpoints."""
    snapshot_every: PositiveInt | None = 150
    """Steps between feature snapshots, to browse during training; if unset, only the final one."""
    tensorboard: bool = False
    """Write TensorBoard event files to the run's folder."""
    wandb_project: str | None = Field(default=None, max_length=200)
    """Log to this Weights & Biases project; the key is read from `WANDB_API_KEY`."""

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.total_tokens is not None and self.num_epochs is not None:
            raise ValueError("Set train.total_tokens or train.num_epochs, not both.")
        if (self.total_tokens or 0) // self.batch_size_tokens > MAX_STEPS:
            raise ValueError(
                f"train.total_tokens = {self.total_tokens} are more than {MAX_STEPS} steps; lower "
                "it, or raise train.batch_size_tokens."
            )
        return self


class IndexConfig(Section):
    """Amount of text in the feature index."""

    tokens: int = Field(default=200_000, ge=1_000, le=MAX_TOKENS)
    """Held-out tokens in the final feature index."""
    snapshot_tokens: int = Field(default=50_000, ge=1_000, le=MAX_TOKENS)
    """Held-out tokens in the feature index of a snapshot during training."""


class RunConfig(Section):
    """Configuration of one run."""

    name: str = Field(default="", max_length=200)
    """Name of the run; if empty, made from the model, layer, k and start time."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of the SAE's initial weights."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    sae: SAEConfig = SAEConfig()
    train: TrainConfig = TrainConfig()
    index: IndexConfig = IndexConfig()

    @model_validator(mode="after")
    def _mixtures_have_no_epochs(self) -> Self:
        if self.train.num_epochs is not None and self.data.mixture is not None:
            raise ValueError(
                "train.num_epochs needs a single dataset, because those of data.mixture end at "
                "different times; give train.total_tokens."
            )
        return self

    @property
    def pass_key(self) -> str:
        """Key that is equal for runs which one pass of the language model can train together.

        They have the same model (but any hook points), text and batch size, and either all train or
        none does.
        """
        same = self.model_dump(
            mode="json",
            include={
                "model": {"name", "dtype", "device", "device_map", "readers"},
                "data": True,
                "train": {"batch_size_tokens"},
            },
        )
        same["trains"] = self.sae.pretrained is None
        return json.dumps(same, sort_keys=True)

    @property
    def hook_name(self) -> str:
        """Short name of the place where activations are read, such as `layer 3 resid_post`."""
        if self.model.hook_point:
            return f"{self.model.hook_point} {self.model.hook_io}"
        return f"layer {self.model.layer} {self.model.site}"


ADDED_LATER = {"data": {"shuffle_tokens": 32_768, "max_norm_multiple": None}}
"""Fields that stored runs may lack, with the values those runs were trained with."""


def by_pass(configs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """Group runs that share a pass of the language model; a pretrained SAE gets its own pass."""
    shared: dict[str, list[RunConfig]] = {}
    for number, config in enumerate(configs):
        key = f"alone {number}" if config.sae.pretrained else config.pass_key
        shared.setdefault(key, []).append(config)
    return list(shared.values())
