"""The language model as the source of activations. The only file that imports nnsight.

`LanguageModel` holds the layers up to the deepest hook, reads activations at all hooks in one
forward pass and stops it there. `SpliceModel` is the whole model, for the cross-entropy with
activations replaced and for generating text with activations shifted. Fed by `loading`; read by
`activations`, `training` and `playground`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import nnsight
import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sae_engine.errors import ConfigError, UserError
from sae_engine.interrupt import CheckStop, never_stop
from sae_engine.model.hook_points import HookPoint, find_hook_point, in_running_order, text_config
from sae_engine.model.loading import (
    check_complete,
    load_head,
    load_prefix,
    load_whole,
    unusable,
)
from sae_engine.model.unembedding import Unembedding
from sae_engine.schema.config import ModelConfig
from sae_engine.sizes import LOGITS_PER_CHUNK

FLOAT16_OVERFLOW = (
    "'{name}' is a Gemma model, made for bfloat16: in float16 its activations can exceed the "
    "largest number, 65,504, and become infinite. Set model.dtype to bfloat16 or float32 if that "
    "happens."
)
LOADED_WHOLE = (
    "All layers of '{name}' are loaded, because its first layers depend on how many there are. They"
    " take memory, but those after the hook point do not run."
)

Replace = Callable[[Float[Tensor, "n d_in"]], Float[Tensor, "n d_in"]]


class Hook(NamedTuple):
    """One place where the model is read."""

    point: HookPoint
    name: str
    """Full path of the module in the whole model, such as `model.layers.12`."""
    d_in: int
    """Width of the activations there."""
    dtype: torch.dtype
    """Theirs, which can differ from the weights'."""


class Continuation(NamedTuple):
    """The logits of the next token, and what to continue from: the key-value cache, or all ids so
    far if the model has none.
    """

    logits: Float[Tensor, " vocab"]
    past: Any


class LanguageModel:
    """The first layers of a causal language model, read at one or several hook points.

    Attributes: `hooks`, the distinct hook points, the first configuration's first; `vocab_size`;
    `tokenizer`, which reads a literal `<bos>` as text; `hf_tokenizer`, that of transformers, which
    has the chat template; `bos_id` and `eos_id`, None if the model has none; `excluded_ids`, those
    of BOS, eos and pad, whose positions are never trained on, measured or shown; `notices`,
    warnings for the user.
    """

    def __init__(self, configs: Sequence[ModelConfig], model: nn.Module, tokenizer: Any) -> None:
        self.config = configs[0]
        self._model = model
        self.hf_tokenizer = tokenizer
        self._traced = nnsight.NNsight(model)
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.tokenizer: Tokenizer = tokenizer.backend_tokenizer
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        special = {self.bos_id, self.eos_id, tokenizer.pad_token_id}
        self.excluded_ids: list[int] = sorted(id_ for id_ in special if id_ is not None)
        language = text_config(model.config)
        self.vocab_size: int = language.vocab_size
        self.notices: list[str] = []
        if self.dtype == torch.float16 and language.model_type.startswith("gemma"):
            self.notices.append(FLOAT16_OVERFLOW.format(name=self.config.name))

        self._points = list(dict.fromkeys(find_hook_point(config, model) for config in configs))
        probe_id = self.excluded_ids[0] if self.excluded_ids else 0
        probe = torch.full((1, 2), probe_id, device=self.device)
        self._order = in_running_order(model, self._points, probe)
        prefix = f"{model.base_model_prefix}." if model.base_model_prefix else ""
        self.hooks: list[Hook] = [
            Hook(point, f"{prefix}{point.path}", x.shape[-1], x.dtype)
            for point, x in zip(self._points, self.all_activations(probe), strict=True)
        ]

    @property
    def dtype_name(self) -> str:
        """As in `model.dtype`, such as `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def d_in(self) -> int:
        """Width of the activations at the first hook."""
        return self.hooks[0].d_in

    @property
    def hook_name(self) -> str:
        """Full path of the first hooked module in the whole model, such as `model.layers.12`."""
        return self.hooks[0].name

    def hook_of(self, config: ModelConfig) -> int:
        """The index in `hooks` of the hook point that `config` names."""
        return self._points.index(find_hook_point(config, self._model))

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        *,
        also: Sequence[ModelConfig] = (),
        ctx_len: int | None = None,
        check_stop: CheckStop = never_stop,
    ) -> LanguageModel:
        """Load the layers up to the deepest hook, without the head.

        `also` names further hook points of the same model; for `ctx_len`, `check_stop` and the
        errors raised, see `load_prefix`.
        """
        configs = [config, *also]
        prefix = load_prefix(configs, ctx_len=ctx_len, check_stop=check_stop)
        try:
            model = cls(configs, prefix.model, prefix.tokenizer)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever architectures raise
            raise unusable(config.name, "reading its activations", error) from error
        if prefix.is_whole:
            model.notices.append(LOADED_WHOLE.format(name=config.name))
        return model

    def at(self, config: ModelConfig) -> LanguageModel | None:
        """The same layers read at another hook; None if they do not reach it."""
        num_loaded = text_config(self._model.config).num_hidden_layers
        if config.deepest_layer is None or config.deepest_layer >= num_loaded:
            return None
        return LanguageModel([config], self._model, self.hf_tokenizer)

    def activations(self, ids: Int[Tensor, "rows ctx"]) -> Float[Tensor, "rows ctx d_in"]:
        """Run the model on `ids` up to the first hook and return the activations there."""
        return self._read(ids, [0])[0]

    def all_activations(
        self, ids: Int[Tensor, "rows ctx"]
    ) -> list[Float[Tensor, "rows ctx d_hook"]]:
        """Run the model once, up to the deepest hook; the activations at each of `hooks`."""
        return self._read(ids, self._order)

    @torch.inference_mode()
    def _read(self, ids: Tensor, order: list[int]) -> list[Tensor]:
        """Activations at the hooks of `order`, given in running order, returned sorted by index.

        The forward pass stops at the last of them.
        """
        points = [self._points[i] for i in order]
        modules = [self._traced.get(point.path) for point in points]
        with self._traced.trace(ids.to(self.device), use_cache=False) as tracer:
            values = list().save()  # pyright: ignore[reportAttributeAccessIssue]  # noqa: C408
            for module, point in zip(modules, points, strict=True):
                values.append(module.output if point.io == "output" else module.input)
            tracer.stop()  # pyright: ignore[reportAttributeAccessIssue]
        by_index = dict(zip(order, values, strict=True))
        return [_as_activations(by_index[i], ids) for i in sorted(by_index)]

    def special_mask(self, ids: Int[Tensor, "rows ctx"]) -> Tensor:
        """True at BOS, pad and eos."""
        return torch.isin(ids, torch.tensor(self.excluded_ids, device=ids.device))

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters of the loaded layers, with their names."""
        return self._model.named_parameters()

    def full(self) -> SpliceModel:
        """The whole model with its head, sharing these layers' tensors."""
        return SpliceModel(self, load_whole(self.config, self._model))

    def check_complete(self) -> None:
        """Raise `UserError` if the files lack a tensor of the whole model."""
        check_complete(self.config)

    def with_head(self) -> Any:
        """A causal language model of these layers only, with the whole model's norm and head."""
        return load_head(self.config, self._model)

    def unembedding(
        self, hook: int = 0, causal_lm: Any = None
    ) -> Float[Tensor, "vocab d_in"] | None:
        """See `Unembedding.matrix`; None also if the hook is not as wide as the residual stream.

        A decoder row times its transpose gives the logits that the feature promotes when it is
        written to the residual stream. Norm and head are those of `causal_lm`, by default
        `with_head()`.
        """
        causal_lm = self.with_head() if causal_lm is None else causal_lm
        unembedding = Unembedding(causal_lm)
        return unembedding.matrix() if unembedding.width == self.hooks[hook].d_in else None


class SpliceModel:
    """The whole language model, with activations at a hook replaced on demand."""

    def __init__(self, prefix: LanguageModel, model: Any) -> None:
        self.prefix = prefix
        self.model = model
        self._traced = nnsight.NNsight(model)
        parameters = inspect.signature(type(model).forward).parameters
        # Recurrent models keep their state elsewhere, some of them inside their layers.
        is_recurrent = getattr(model, "_is_stateful", False)
        self._takes_cache = "past_key_values" in parameters and not is_recurrent
        self._last_only: dict[str, Any] = (
            {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        )

    @cached_property
    def _unembedding(self) -> Unembedding:
        return Unembedding(self.model)

    @torch.inference_mode()
    def cross_entropy(
        self,
        ids: Int[Tensor, "rows ctx"],
        replace: Replace | None = None,
        hook: int = 0,
        at: Bool[Tensor, "rows ctx"] | None = None,
    ) -> tuple[float, int]:
        """Sum of the next-token cross-entropies in nats, and their number.

        Only predictions made at the positions `at` count, by default all but BOS, pad and eos.
        There, `replace` maps the activations at `prefix.hooks[hook]` to others; the other positions
        keep theirs, because replacing an attention sink wrecks the model.
        """
        ids = ids.to(self.prefix.device)
        ordinary = ~self.prefix.special_mask(ids) if at is None else at.to(ids.device)
        module, io = self._module(hook)
        body = self._traced.get(self._unembedding.body_path)
        with self._traced.trace(ids, use_cache=False) as tracer:
            if replace is not None and io == "output":
                module.output = _spliced(module.output, ids, ordinary, replace)
            elif replace is not None:
                module.input = _spliced(module.input, ids, ordinary, replace)
            output = body.output.save()
            tracer.stop()  # pyright: ignore[reportAttributeAccessIssue]
        counted = ordinary[:, :-1]
        losses = self._summed_losses(output, counted, ids[:, 1:][counted])
        return losses, int(counted.sum())

    @torch.inference_mode()
    def next_logits(
        self,
        ids: Int[Tensor, "1 n"],
        past: Any = None,
        add: Float[Tensor, " d_in"] | None = None,
        hook: int = 0,
        largest_norm: float = math.inf,
    ) -> Continuation:
        """The logits after `ids`, which continue the text in `past`, the previous call's cache.

        `add` is added to the activations at `prefix.hooks[hook]` at the ordinary positions of
        `ids`; BOS, pad, eos and those with a norm above `largest_norm` keep theirs. A model without
        such a cache reads the whole text again.
        """
        ids = ids.to(self.prefix.device)
        if past is not None and not self._takes_cache:
            ids = torch.cat([past, ids], dim=1)
        ordinary = ~self.prefix.special_mask(ids)
        module, io = self._module(hook)

        def shifted(x: Tensor) -> Tensor:
            if add is None:
                return x
            return x + add.to(x.device) * (x.norm(dim=1, keepdim=True) <= largest_norm)

        cache = {"past_key_values": past} if self._takes_cache else {}
        with self._traced.trace(ids, use_cache=self._takes_cache, **cache, **self._last_only):
            if add is not None and io == "output":
                module.output = _spliced(module.output, ids, ordinary, shifted)
            elif add is not None:
                module.input = _spliced(module.input, ids, ordinary, shifted)
            answer = self._traced.output.save()
        past = answer.past_key_values if self._takes_cache else ids
        return Continuation(answer.logits[0, -1].float(), past)

    def _module(self, hook: int) -> tuple[Any, str]:
        """The traced module of `prefix.hooks[hook]`, and which side of it is read."""
        point = self.prefix.hooks[hook].point
        return self._traced.get(f"{self.model.base_model_prefix}.{point.path}"), point.io

    def _summed_losses(self, output: Any, counted: Tensor, targets: Int[Tensor, " n"]) -> float:
        """Sum over the `counted` predictions [rows, ctx - 1] from the body's `output`."""
        hidden = output[0][:, :-1][counted]
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        rows = max(1, LOGITS_PER_CHUNK // self.prefix.vocab_size)
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True):
            total += cross_entropy(self._unembedding.logits(h, output), t, reduction="sum")
        return total.item()


def _spliced(value: Any, ids: Tensor, ordinary: Tensor, replace: Replace) -> Any:
    """A module's output or input, with `replace` applied to the activations at ordinary
    positions.
    """
    changed = _as_activations(value, ids).clone()
    changed[ordinary] = replace(changed[ordinary].float()).to(changed.dtype)
    return (changed, *value[1:]) if isinstance(value, tuple) else changed


def _as_activations(value: Any, ids: Tensor) -> Tensor:
    # Some modules return a tuple (attention), some a tensor (decoder layers in transformers 5).
    tensor = value[0] if isinstance(value, tuple) else value
    if not isinstance(tensor, Tensor) or tensor.shape[:2] != ids.shape or tensor.ndim != 3:
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ConfigError.of(
            "model.hook_point",
            f"It gives {shape} for {tuple(ids.shape)} tokens; a hook point must give one vector "
            "per token.",
        )
    return tensor
