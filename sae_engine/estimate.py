"""The memory, disk space and size of a run, estimated from its configuration and its model's
`config.json`. No weights are loaded and no torch is imported.

The memory is that of the most demanding phase of a run: a sum of parts that exist at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sae_engine.errors import ConfigError, cause_of
from sae_engine.files import read_json_object, user_path
from sae_engine.preflight import model_path
from sae_engine.schema.config import DataConfig, ModelConfig, RunConfig
from sae_engine.schema.machine import Estimate, MemoryPart
from sae_engine.sizes import (
    ENTRIES_PER_SORT,
    LOGITS_PER_CHUNK,
    TOKENS_PER_BLOCK,
    TOKENS_PER_FORWARD,
    num_heldout,
    num_stored,
)

FLOAT32 = 4
BYTES_PER_ENTRY = 12
"""Size of an active latent at a token in a feature index, stored twice: once by token
and once by latent.
"""
BYTES_PER_SORTED_ENTRY = 8
"""On disk, while a feature index is sorted; in memory, of those sorted at once, twice as many."""
BYTES_PER_PAIR = 18
"""Of a token and a latent that is active on it, in a feature index."""
BYTES_PER_INDEXED_TOKEN = 24
"""Its id, its place, and at most one row and one break of the text."""
BYTES_PER_LATENT = 256
"""In a feature index: its bounds, logits and neighbors."""
BYTES_PER_WORD = 256
"""Of a vocabulary, in a feature index: the bounds of each token, its text, and its share of the
`tokenizer.json`, which is 66 bytes for the embedded model and 134 for Gemma 2.
"""
BYTES_OF_HEADERS = 2**17
"""Of all files of a run, or of a feature index, that do not grow with it."""
BYTES_PER_HELDOUT_TOKEN = 13
"""An id in the rows that were read, whether it counts, and its id in the feature index."""
BYTES_PER_SHUFFLED_TOKEN = 16
"""An id in the rows that were read, and its copy in the shuffled pool."""

PREFIX = "language model up to the hook"
WAITING = "waiting activations"
CHECKPOINT = "checkpoint being written"
OF_EACH_SAE = ("SAE", "Adam", CHECKPOINT, "16-bit copy of the encoder")
"""Parts that every run on a pass holds separately, all the time."""

UNGATED = {
    *("bloom", "codegen", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj"),
    *("opt", "phi"),
}
"""Model types whose MLP has two matrices; all others are counted with three."""

GEMMA_2_2B: dict[str, Any] = {
    "model_type": "gemma2",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 256_000,
}
"""Stored here because presets use this model and its files are gated."""


class ModelShape(NamedTuple):
    """The sizes of a language model that determine its memory."""

    d_model: int
    d_mlp: int
    mlp_matrices: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    num_positions: int
    """Number of learned position embeddings."""
    vectors_per_layer: int
    """Norms and biases, in multiples of `d_model`, approximately."""
    tied_head: bool

    @property
    def embedding(self) -> int:
        """Parameters of the embeddings."""
        return (self.vocab_size + self.num_positions) * self.d_model

    @property
    def layer(self) -> int:
        """Parameters of one decoder layer."""
        attention = 2 * self.d_model * self.head_dim * (self.num_heads + self.num_kv_heads)
        mlp = self.mlp_matrices * self.d_model * self.d_mlp
        return attention + mlp + self.vectors_per_layer * self.d_model

    @property
    def head(self) -> int:
        """Parameters of the unembedding, 0 if it is the embedding."""
        return 0 if self.tied_head else self.vocab_size * self.d_model

    def prefix(self, num_layers: int) -> int:
        """Parameters of the first layers, without the head."""
        return self.embedding + num_layers * self.layer + self.d_model


def model_shape(described: Mapping[str, Any]) -> ModelShape:
    """Read a `config.json`; raises `KeyError` for one that lacks a size, `TypeError` for one in
    which a size is no number.
    """
    described = described.get("text_config") or described
    kind = str(described["model_type"])
    is_gpt2 = kind == "gpt2"
    d_model = described["n_embd"] if is_gpt2 else described["hidden_size"]
    num_heads = described["n_head"] if is_gpt2 else described["num_attention_heads"]
    is_gemma = kind.startswith("gemma")
    gated = kind not in UNGATED
    shape = ModelShape(
        d_model=d_model,
        d_mlp=(described.get("n_inner") or 4 * d_model)
        if is_gpt2
        else described["intermediate_size"],
        mlp_matrices=3 if gated else 2,
        num_layers=described["n_layer"] if is_gpt2 else described["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=described.get("num_key_value_heads") or num_heads,
        head_dim=described.get("head_dim") or d_model // num_heads,
        vocab_size=described["vocab_size"],
        num_positions=described["n_positions"] if is_gpt2 else 0,
        vectors_per_layer=(4 if is_gemma and kind != "gemma" else 2) if gated else 13,
        tied_head=described.get("tie_word_embeddings", is_gemma or is_gpt2),
    )
    if not all(isinstance(size, int) and 0 <= size < 2**40 for size in shape):
        raise TypeError(f"{shape} has an invalid size")
    return shape


def describe_model(config: ModelConfig) -> Mapping[str, Any]:
    """A model's `config.json`, from its folder, the hub's cache or the hub.

    Raises `ConfigError` if it cannot be read.
    """
    from huggingface_hub import hf_hub_download

    name = model_path(config)
    folder = user_path(name)
    try:
        if not folder.is_dir() and config.name == "google/gemma-2-2b":
            return GEMMA_2_2B
        path = (
            folder / "config.json"
            if folder.is_dir()
            else Path(hf_hub_download(name, "config.json", etag_timeout=5))
        )
        return read_json_object(path)
    except (OSError, ValueError) as error:
        raise ConfigError.of(
            "model.name", f"The config.json of '{config.name}' cannot be read: {cause_of(error)}"
        ) from error


def estimate(
    config: RunConfig, *, gpu: bool, together: Sequence[RunConfig] | None = None
) -> Estimate:
    """Estimate a run of `config` on a GPU or on the CPU; raises `ConfigError`.

    `together` are all runs on its pass, whose final indexes read the language model together.
    """
    try:
        shape = model_shape(describe_model(config.model))
    except KeyError as error:
        raise ConfigError.of(
            "model.name",
            f"The sizes of '{config.model.name}' are not known: its config.json lacks {error}.",
        ) from error
    except (TypeError, AttributeError, ZeroDivisionError, OverflowError):
        raise ConfigError.of(
            "model.name",
            f"The sizes of '{config.model.name}' are not known: its config.json has one that is "
            "not a positive number.",
        ) from None
    d_in = _hook_width(config.model, shape)
    try:
        d_sae = config.sae.num_latents(d_in)
        encoding = sum(
            _published(one, shape)
            for one in together or [config]
            if one.index.tokens > num_stored(one)
        )
    except ValueError as error:
        raise ConfigError.of("sae.k", str(error)) from None
    is_import = config.sae.pretrained is not None
    matrices = 1 if config.sae.tied_weights and not is_import else 2
    parameters = matrices * d_sae * d_in + d_sae + d_in
    published = _published(config, shape)
    checkpoint = 0 if is_import else 3 * parameters * FLOAT32 + 8 * d_sae
    batch = config.train.batch_size_tokens
    steps = config.train.total_tokens // batch if config.train.total_tokens else None
    steps = 0 if is_import else steps
    width = _element_bytes(config.model, gpu=gpu)
    memory = _memory(config, shape, parameters * FLOAT32, published, encoding, gpu=gpu)
    return Estimate(
        d_in=d_in,
        d_sae=d_sae,
        parameters=parameters,
        model_parameters=shape.prefix(_layers(config.model, shape)),
        tokens=None if steps is None else steps * batch,
        steps=steps,
        checkpoint_bytes=checkpoint,
        disk_bytes=_disk(config, shape, steps, d_in * width, checkpoint),
        memory=[MemoryPart(name=name, bytes=size) for name, size in memory.items() if size],
        memory_bytes=sum(memory.values()),
        device="gpu" if gpu else "cpu",
    )


def estimate_together(configs: Sequence[RunConfig], *, gpu: bool) -> Estimate:
    """Estimate runs on one pass of the language model: memory and disk space are those of all runs
    together, the other sizes those of the first. Raises `ConfigError`.
    """
    each = [estimate(config, gpu=gpu, together=configs) for config in configs]
    largest = max(each, key=lambda one: one.memory_bytes)
    memory = _by_name(largest)
    memory[PREFIX] = max(_by_name(one)[PREFIX] for one in each)
    memory |= {
        name: sum(_by_name(one)[name] for one in each) for name in OF_EACH_SAE if name in memory
    }
    if WAITING in memory:
        memory[WAITING] *= len({config.hook_name for config in configs})
    return each[0].model_copy(
        update={
            "disk_bytes": sum(one.disk_bytes for one in each),
            "memory": [MemoryPart(name=name, bytes=size) for name, size in memory.items()],
            "memory_bytes": sum(memory.values()),
        }
    )


def _by_name(found: Estimate) -> dict[str, int]:
    return {part.name: part.bytes for part in found.memory}


def _memory(
    config: RunConfig,
    shape: ModelShape,
    sae: int,
    published: int,
    encoding: int,
    *,
    gpu: bool,
) -> dict[str, int]:
    """Bytes by part in the phase that needs most; `encoding` are those of the SAEs that encode
    while the language model reads.
    """
    d_in = _hook_width(config.model, shape)
    d_sae = config.sae.num_latents(d_in)
    width = _element_bytes(config.model, gpu=gpu)
    num_layers = _layers(config.model, shape)
    is_import = config.sae.pretrained is not None
    if is_import:  # the SAE is the published one
        published = encoding = 0
    batch = config.train.batch_size_tokens
    block = TOKENS_PER_BLOCK * d_in * width
    always = {
        PREFIX: shape.prefix(num_layers) * width,
        "SAE": sae,
        "Adam": 0 if is_import else 2 * sae,
        CHECKPOINT: 0 if gpu or is_import else 3 * sae,
        "16-bit copy of the encoder": 0 if gpu else d_sae * d_in * 2,
        "shuffled text": 0 if gpu or is_import else _shuffled(config.data),
        "held-out text": 0 if gpu else num_heldout(config) * BYTES_PER_HELDOUT_TOKEN,
    }
    forward = _forward(config, shape, width)
    missing = ((shape.num_layers - num_layers) * shape.layer + shape.head) * width
    # On a GPU, what autograd needs; it is used where the Triton kernels, which need less, fail.
    dense = 5 * batch * d_sae * FLOAT32 + sae if gpu else 0
    entries = min(config.index.tokens * config.sae.k, ENTRIES_PER_SORT)
    sorting = 0 if gpu else 2 * entries * BYTES_PER_SORTED_ENTRY + 4 * config.index.tokens
    window = block + block // 2
    beside = {
        WAITING: window,
        "remaining layers": missing,
        "published SAE": published,
    }
    training: list[dict[str, int]] = [
        {WAITING: 3 * block + block // 2, "one forward pass": forward},
        {WAITING: 4 * block},
        {WAITING: window, "one step": dense + 4 * batch * d_in * FLOAT32},
    ]
    phases: list[dict[str, int]] = [
        *([] if is_import else training),
        beside | {"one forward pass": forward},
        {WAITING: window, "published SAE": encoding, "one forward pass": forward},
        beside | {"dense codes": 2 * TOKENS_PER_FORWARD * d_sae * FLOAT32},
        {WAITING: window, "published SAE": published, "sorted codes": sorting},
        beside | {"logits": 3 * LOGITS_PER_CHUNK * FLOAT32},
        beside | {"unembedding": shape.vocab_size * shape.d_model * FLOAT32},
    ]
    return always | max(phases, key=lambda phase: sum(phase.values()))


def _shuffled(config: DataConfig) -> int:
    """Bytes of the text that is shuffled, in main memory."""
    if config.activations or config.shuffle_tokens <= TOKENS_PER_BLOCK:
        return 0
    return config.shuffle_tokens * BYTES_PER_SHUFFLED_TOKEN


def _forward(config: RunConfig, shape: ModelShape, width: int) -> int:
    """Bytes that one call of the language model holds at once, without its result."""
    ctx = config.data.ctx_len
    tokens = max(1, TOKENS_PER_FORWARD // ctx) * ctx
    scores = tokens * ctx * shape.num_heads * width
    # Queries and keys before and after rotation, values, and keys and values repeated per query
    # head; scores before and after each operation (softmax is float32); two masks.
    projections = tokens * shape.head_dim * (4 * shape.num_heads + 3 * shape.num_kv_heads) * width
    attention = projections + (2 if width == FLOAT32 else 3) * scores + 2 * tokens * ctx * width
    # A layer keeps its attention weights until its end.
    mlp = shape.mlp_matrices * tokens * shape.d_mlp * width + scores
    return max(attention, mlp) + 2 * tokens * shape.d_model * width


def _disk(
    config: RunConfig, shape: ModelShape, steps: int | None, activation: int, checkpoint: int
) -> int:
    """Most bytes in a run's folder, while its final index is sorted and its held-out activations,
    of `activation` bytes each, are still there.
    """
    every = config.train.snapshot_every
    snapshots = (steps or 0) // every if every else 0
    index = config.index
    indexes = index_bytes(config, shape, index.tokens)
    indexes += snapshots * index_bytes(config, shape, index.snapshot_tokens)
    sorting = index.tokens * config.sae.k * BYTES_PER_SORTED_ENTRY
    heldout = num_stored(config) * activation
    # The newest checkpoint, the previous one, and one that is being written, with what they know
    # of the held-out text; likewise the last SAE, the best one, and one that is being written.
    checkpoints = 3 * (checkpoint + num_heldout(config) // 6)
    saes = 3 * _published(config, shape)
    return checkpoints + saes + indexes + sorting + heldout + BYTES_OF_HEADERS


def index_bytes(config: RunConfig, shape: ModelShape, num_tokens: int) -> int:
    """Most bytes of a feature index."""
    d_sae = config.sae.num_latents(_hook_width(config.model, shape))
    entries = num_tokens * config.sae.k
    return (
        entries * BYTES_PER_ENTRY
        + min(entries, shape.vocab_size * d_sae) * BYTES_PER_PAIR
        + num_tokens * BYTES_PER_INDEXED_TOKEN
        + d_sae * BYTES_PER_LATENT
        + shape.vocab_size * BYTES_PER_WORD
        + _published(config, shape)
        + BYTES_OF_HEADERS
    )


def _published(config: RunConfig, shape: ModelShape) -> int:
    """Bytes of the SAE as it is published."""
    d_in = _hook_width(config.model, shape)
    d_sae = config.sae.num_latents(d_in)
    return (2 * d_sae * d_in + d_sae + d_in) * FLOAT32


def _layers(config: ModelConfig, shape: ModelShape) -> int:
    """Number of layers that are loaded to read at the hook point."""
    layer = config.deepest_layer
    return shape.num_layers if layer is None else min(layer + 1, shape.num_layers)


def _hook_width(config: ModelConfig, shape: ModelShape) -> int:
    name = (config.hook_point or "").rpartition(".")[2]
    inner = {("gate_proj", "output"), ("up_proj", "output"), ("down_proj", "input")}
    return shape.d_mlp if (name, config.hook_io) in inner else shape.d_model


def _element_bytes(config: ModelConfig, *, gpu: bool) -> int:
    return 2 if config.dtype in ("bfloat16", "float16") or (config.dtype == "auto" and gpu) else 4
