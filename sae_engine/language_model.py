"""The language model, as the source of activations. The only file that imports nnsight.

`LanguageModel` loads the layers up to the hook and nothing else, reads activations there and stops
the forward pass at once. `SpliceModel` is the whole model, for the cross-entropy with other
activations in place of its own. Fed by `corpus` (packed rows of token ids); read by `activations`,
`evaluate` and `feature_index`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nnsight
import torch
from huggingface_hub import HfApi, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from sae_engine.errors import ConfigError, UserError
from sae_engine.preflight import EMBEDDED_MODEL, model_path
from sae_engine.schema.config import ModelConfig
from sae_engine.text_sources import is_connection_error

HUB_TIMEOUT_SECONDS = 5
LOGITS_PER_CHUNK = 2**26
"""Largest number of logits held at once while measuring cross-entropy (256 MiB in float32)."""

Replace = Callable[[Float[Tensor, "n d_in"]], Float[Tensor, "n d_in"]]

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
_log = logging.getLogger(__name__)


class LanguageModel:
    """The first layers of a causal language model, read at one hook point.

    Attributes: `d_in`, the width of the activations; `vocab_size`; `tokenizer`, a
    `tokenizers.Tokenizer` that reads a literal `<bos>` as text; `bos_id` (None if the model has
    none) and `eos_id`.
    """

    def __init__(self, config: ModelConfig, model: nn.Module, path: str, tokenizer: Any) -> None:
        self.config = config
        self.path = path
        """Path of the hooked module inside the base model, such as `layers.3`."""
        self._model = model
        self._traced = nnsight.NNsight(model)
        self._hook = self._traced.get(path)
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.tokenizer: Tokenizer = tokenizer.backend_tokenizer
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.excluded_ids: list[int] = sorted(
            i
            for i in {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
            if i is not None
        )
        """Ids whose positions never enter the buffer, the statistics or the feature index."""
        self.vocab_size: int = text_config(model.config).vocab_size
        probe = torch.full(
            (1, 2), self.excluded_ids[0] if self.excluded_ids else 0, device=self.device
        )
        self.d_in = self.activations(probe).shape[-1]

    @property
    def hook_name(self) -> str:
        """Full path of the hooked module in the whole model, such as `model.layers.12`."""
        prefix = self._model.base_model_prefix
        return f"{prefix}.{self.path}" if prefix else self.path

    @classmethod
    def load(cls, config: ModelConfig) -> LanguageModel:
        """Load the layers up to the hook, without the head.

        Raises `UserError` in one sentence when the model cannot be had, `ConfigError` for a hook
        that it does not have.
        """
        name = model_path(config)
        with _loading(config.name):
            _ask_hub(name)
            hf_config = AutoConfig.from_pretrained(name)
            tokenizer = AutoTokenizer.from_pretrained(name)
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise UserError(
                f"The tokenizer of '{config.name}' has no fast (tokenizers) version, which is "
                f"needed."
            )
        num_layers = _layers_needed(config, text_config(hf_config).num_hidden_layers)
        if num_layers is not None:
            _truncate(text_config(hf_config), num_layers)
        device = resolve_device(config)
        with _loading(config.name):
            model = AutoModel.from_pretrained(
                name,
                config=hf_config,
                dtype=resolve_dtype(config, device),
                attn_implementation="eager",
                use_safetensors=True,
                device_map=config.device_map,
            )
        if config.device_map is None:
            model.to(device)  # pyright: ignore[reportArgumentType]
        model.eval().requires_grad_(False)
        return cls(config, model, _hook_path(config, model), tokenizer)

    @torch.inference_mode()
    def activations(self, ids: Int[Tensor, "rows ctx"]) -> Float[Tensor, "rows ctx d_in"]:
        """Run the model on `ids` as far as the hook and return what passes there."""
        with self._traced.trace(ids.to(self.device), use_cache=False) as tracer:
            value = (
                self._hook.output if self.config.hook_io == "output" else self._hook.input
            ).save()
            tracer.stop()  # pyright: ignore[reportAttributeAccessIssue]
        return _as_activations(value, ids)

    def special_mask(self, ids: Int[Tensor, "rows ctx"]) -> Tensor:
        """True at BOS, pad and eos: positions that are never trained on, measured or shown."""
        return torch.isin(ids, torch.tensor(self.excluded_ids, device=ids.device))

    def full(self) -> SpliceModel:
        """Load the whole model, with its head, beside this prefix."""
        name = model_path(self.config)
        with _loading(self.config.name):
            model = AutoModelForCausalLM.from_pretrained(
                name,
                dtype=self._model.dtype,
                attn_implementation="eager",
                use_safetensors=True,
                device_map=self.config.device_map,
            )
        if self.config.device_map is None:
            model.to(self.device)  # pyright: ignore[reportArgumentType]
        return SpliceModel(self, model.eval().requires_grad_(False))

    def unembedding(self) -> Float[Tensor, "vocab d_in"] | None:
        """W_U times the final norm's own weight, or None where the site is not the residual
        stream's width.

        A decoder row times its transpose gives the logits that the feature promotes when it is
        written to the residual stream (the norm's division by the scale, which is the same for all
        tokens, left out).
        """
        model = self.full().model
        head = model.get_output_embeddings()
        if head is None or head.weight.shape[1] != self.d_in:
            return None
        weight = head.weight.detach().float()
        norm = getattr(model.base_model, "norm", None) or getattr(model.base_model, "ln_f", None)
        if norm is None or getattr(norm, "weight", None) is None:
            return weight
        # Gemma's norms multiply by 1 + weight.
        gain = norm.weight.float() + (1.0 if model.config.model_type.startswith("gemma") else 0.0)
        return weight * gain


class SpliceModel:
    """The whole language model, with its activations at the hook replaced on demand."""

    def __init__(self, prefix: LanguageModel, model: Any) -> None:
        self.prefix = prefix
        self.model = model
        self._traced = nnsight.NNsight(model)
        base = self._traced.get(model.base_model_prefix)
        self._base = base
        self._hook = self._traced.get(f"{model.base_model_prefix}.{prefix.path}")
        self._soft_cap: float | None = getattr(
            text_config(model.config), "final_logit_softcapping", None
        )

    @torch.inference_mode()
    def cross_entropy(
        self,
        ids: Int[Tensor, "rows ctx"],
        replace: Replace | None = None,
    ) -> tuple[float, int]:
        """Sum of the next-token cross-entropies in nats, and their number.

        Predictions count where they are made at an ordinary position. `replace` maps the
        activations at those positions to others; BOS, pad and eos keep their own, as replacing an
        attention sink wrecks the model.
        """
        ids = ids.to(self.prefix.device)
        ordinary = ~self.prefix.special_mask(ids)
        takes_output = self.prefix.config.hook_io == "output"

        def spliced(value: Any, replace: Replace) -> Any:
            changed = _as_activations(value, ids).clone()
            changed[ordinary] = replace(changed[ordinary].float()).to(changed.dtype)
            return (changed, *value[1:]) if isinstance(value, tuple) else changed

        with self._traced.trace(ids, use_cache=False) as tracer:
            if replace is not None and takes_output:
                self._hook.output = spliced(self._hook.output, replace)
            elif replace is not None:
                self._hook.input = spliced(self._hook.input, replace)
            hidden = self._base.output.save()
            tracer.stop()  # pyright: ignore[reportAttributeAccessIssue]
        counted = ordinary[:, :-1]
        losses = self._summed_losses(hidden[0][:, :-1][counted], ids[:, 1:][counted])
        return losses, int(counted.sum())

    def _summed_losses(self, hidden: Float[Tensor, "n d_in"], targets: Int[Tensor, " n"]) -> float:
        head = self.model.get_output_embeddings()
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        rows = max(1, LOGITS_PER_CHUNK // self.prefix.vocab_size)
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True):
            logits = head(h).float()
            if self._soft_cap is not None:
                logits = self._soft_cap * torch.tanh(logits / self._soft_cap)
            total += cross_entropy(logits, t, reduction="sum")
        return total.item()


def resolve_device(config: ModelConfig) -> torch.device:
    """The device a run works on; raises `ConfigError` for a GPU that is not there."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(config.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError.of(
            "model.device",
            f"'{config.device}' does not exist; {torch.cuda.device_count()} CUDA devices were "
            f"found. Use cpu or auto.",
        )
    return device


def resolve_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, config.dtype)


def text_config(config: Any) -> Any:
    """A model's language part (multimodal configurations nest it)."""
    return config.get_text_config()


def _as_activations(value: Any, ids: Tensor) -> Tensor:
    # Some modules return a tuple (attention), some a tensor (decoder layers in transformers 5).
    tensor = value[0] if isinstance(value, tuple) else value
    if not isinstance(tensor, Tensor) or tensor.shape[:2] != ids.shape or tensor.ndim != 3:
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ConfigError.of(
            "model.hook_point",
            f"It gives {shape} for {tuple(ids.shape)} tokens; a hook point must give one vector "
            f"per token.",
        )
    return tensor


def _truncate(config: Any, num_layers: int) -> None:
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]


def _layers_needed(config: ModelConfig, num_layers: int) -> int | None:
    """How many decoder layers the hook needs; None for all of them."""
    if config.hook_point is None:
        layer = config.layer
    else:
        numbers = re.findall(r"\.(\d+)(?=\.|$)", config.hook_point)
        if not numbers:
            return None
        layer = int(numbers[0])
    if layer >= num_layers:
        field = "model.hook_point" if config.hook_point else "model.layer"
        raise ConfigError.of(
            field,
            f"Layer {layer} does not exist; '{config.name}' has layers 0 to {num_layers - 1}.",
        )
    return layer + 1


def _hook_path(config: ModelConfig, model: Any) -> str:
    modules = dict(model.named_modules())
    if config.hook_point is not None:
        for prefix in ("model", "transformer", model.base_model_prefix):
            path = config.hook_point.removeprefix(f"{prefix}.") if prefix else config.hook_point
            if path in modules and path:
                return path
        raise ConfigError.of(
            "model.hook_point",
            f"'{config.hook_point}' is not a module of '{config.name}'; its top-level modules are "
            f"{', '.join(name for name, _ in model.named_children())}.",
        )
    num_layers = text_config(model.config).num_hidden_layers
    stacks = [
        n for n, m in modules.items() if isinstance(m, nn.ModuleList) and len(m) == num_layers
    ]
    if not stacks:
        raise ConfigError.of(
            "model.site",
            f"The layers of '{config.name}' were not found; name a module with model.hook_point.",
        )
    layer = f"{stacks[0]}.{config.layer}"
    if config.site == "resid_post":
        return layer
    # What is added to the residual stream: on Gemma-2 and later the sub-layer's output passes a
    # norm first.
    if f"{layer}.post_feedforward_layernorm" in modules:
        wanted = {
            "mlp_out": ["post_feedforward_layernorm"],
            "attn_out": ["post_attention_layernorm"],
        }
    else:
        wanted = {
            "mlp_out": ["mlp", "feed_forward"],
            "attn_out": ["self_attn", "attn", "attention"],
        }
    for child in wanted[config.site]:
        if f"{layer}.{child}" in modules:
            return f"{layer}.{child}"
    raise ConfigError.of(
        "model.site",
        f"'{config.name}' has no known {config.site}; name a module with model.hook_point.",
    )


@contextmanager
def _loading(name: str) -> Generator[None]:
    """Turn what the hub and the file system answer into one sentence with the remedy."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        if not (isinstance(error, ValueError | KeyError) or is_connection_error(error)):
            raise
        _log.warning("loading %s failed", name, exc_info=True)
        raise UserError(_why_not_loaded(name, error)) from error


def _ask_hub(name: str) -> None:
    """Ask once about a model that is not here.

    The downloader would try an unreachable hub for long.
    """
    if Path(name).expanduser().is_dir() or is_offline_mode():
        return
    if try_to_load_from_cache(name, "config.json") is None:
        HfApi().model_info(name, timeout=HUB_TIMEOUT_SECONDS)


def _why_not_loaded(name: str, error: BaseException) -> str:
    if Path(name).expanduser().is_dir():
        return f"The folder '{name}' does not hold a complete model: {error}"
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(e) for e in causes)
    if any(isinstance(e, GatedRepoError) for e in causes) or "access a gated repo." in text:
        return (
            f"'{name}' is gated: accept its license on its Hugging Face page and set HF_TOKEN to a "
            "token of that account."
        )
    missing = any(isinstance(e, RepositoryNotFoundError) for e in causes)
    if missing or "not a valid model identifier" in text:
        return (
            f"There is no model '{name}' on the Hugging Face hub (or it is private and HF_TOKEN is "
            f"not set), and no such folder here. The embedded model is '{EMBEDDED_MODEL}'."
        )
    remedy = f"check the network, or use a local folder or the embedded '{EMBEDDED_MODEL}'."
    if is_offline_mode():
        return f"'{name}' is not in the local cache and HF_HUB_OFFLINE is set; {remedy}"
    unreachable = any(
        isinstance(e, LocalEntryNotFoundError)
        or (is_connection_error(e) and not isinstance(e, FileNotFoundError))
        for e in causes
        if type(e) is not OSError  # what transformers raises for everything
    )
    if unreachable or "connect" in text.lower():
        return f"'{name}' is not cached and the Hugging Face hub cannot be reached; {remedy}"
    return f"The model '{name}' could not be loaded: {error}"
