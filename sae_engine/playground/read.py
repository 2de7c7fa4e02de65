"""Which features of an SAE are active on a text.

Called by the playground's worker process and by users of the library; `steer` shares `ProbeModel`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_engine.activations.outliers import is_outlier
from sae_engine.errors import UserError
from sae_engine.features.index.vocabulary import shown_tokens, token_bytes
from sae_engine.model.identity import ModelIdentity
from sae_engine.model.language_model import LanguageModel, SpliceModel
from sae_engine.sae.autoencoders import SAE, Code
from sae_engine.schema.playground import (
    MAX_TEXT_TOKENS,
    ExcludedPosition,
    FeatureActivation,
    ReadToken,
    TextReading,
)


@dataclass(frozen=True)
class ProbeModel:
    """A language model, read at its first hook, and the means to show and continue text."""

    model: LanguageModel
    load_whole: Callable[[], SpliceModel]
    """Loads the remaining layers, which only generating text needs."""
    pieces: Sequence[bytes]
    """The bytes of every token id, from `vocabulary.token_bytes`."""

    @classmethod
    def of(cls, model: LanguageModel) -> ProbeModel:
        return cls(model, model.full, token_bytes(model.tokenizer, model.vocab_size))

    @cached_property
    def whole(self) -> SpliceModel:
        return self.load_whole()

    @cached_property
    def identity(self) -> ModelIdentity:
        return ModelIdentity.of(self.model)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without BOS; raises `UserError` if there are none."""
        ids: list[int] = self.model.tokenizer.encode(text, add_special_tokens=False).ids
        if not ids:
            raise UserError(f"The text '{text[:50]}' has no token in this model's vocabulary.")
        return ids

    def shown(self, ids: Sequence[int]) -> list[str]:
        return shown_tokens(self.pieces[i] for i in ids)

    def why_excluded(self, id_: int, *, is_outlier: bool) -> ExcludedPosition | None:
        if id_ not in self.model.excluded_ids:
            return "outlier" if is_outlier else None
        if id_ == self.model.bos_id:
            return "BOS"
        return "eos" if id_ == self.model.eos_id else "pad"


def read_text(
    model: ProbeModel,
    sae: SAE,
    text: str,
    *,
    ctx_len: int,
    top: int = 10,
    features: Sequence[int] = (),
    largest_norm: float = math.inf,
) -> TextReading:
    """The `top` strongest features of every token of `text`, and the activations of `features` at
    every token.

    As in training, the text is split into rows of `ctx_len` tokens, each starting with BOS if the
    model has one, and outliers, whose activation has a norm above `largest_norm`, have no features.
    Raises `UserError` for more than `MAX_TEXT_TOKENS` tokens, and for activations
    that are not finite.
    """
    ids = model.encode(text)
    if len(ids) > MAX_TEXT_TOKENS:
        raise UserError(
            f"The text has {len(ids):,} tokens, but at most {MAX_TEXT_TOKENS:,} can be read at "
            "once; shorten it."
        )
    bos = [] if model.model.bos_id is None else [model.model.bos_id]
    width = ctx_len - len(bos)
    shown = model.shown(ids)
    row_ids: list[list[int]] = []
    row_texts: list[str] = []
    for start in range(0, len(ids), width):
        row_ids.append(bos + ids[start : start + width])
        row_texts += model.shown(bos) + shown[start : start + width]
    code, outlier = _encode(model.model, sae, row_ids, largest_norm)
    listed = [_strongest(acts, indices, top) for acts, indices in zip(*code, strict=True)]
    tokens = [
        ReadToken(
            id=id_,
            text=token,
            excluded=(excluded := model.why_excluded(id_, is_outlier=large)),
            num_active=0 if excluded else int((acts > 0).sum()),
            total=0.0 if excluded else float(acts.sum()),
            features=[] if excluded else strongest,
        )
        for id_, token, acts, strongest, large in zip(
            chain.from_iterable(row_ids), row_texts, code.acts, listed, outlier, strict=True
        )
    ]
    ordinary = torch.tensor([token.excluded is None for token in tokens])
    columns = [
        torch.where((code.indices == index) & ordinary[:, None], code.acts, 0).sum(dim=1).tolist()
        for index in features
    ]
    return TextReading(tokens=tokens, activations=columns)


@torch.inference_mode()
def _encode(
    model: LanguageModel, sae: SAE, rows: Sequence[Sequence[int]], largest_norm: float
) -> tuple[Code, list[bool]]:
    """Codes of all positions, on the CPU, and which of them have a norm above `largest_norm`; only
    the last row may be shorter than the others.
    """
    whole = [torch.tensor(rows[:-1])] if len(rows) > 1 else []
    parts = [model.activations(ids).flatten(0, 1) for ids in [*whole, torch.tensor(rows[-1:])]]
    x = torch.cat(parts).to(sae.W_dec.device).float()
    code = sae.encode(x)
    if not (x.isfinite().all() and code.acts.isfinite().all()):
        raise UserError(
            f"The activations of '{model.config.name}' or of the features are not finite on this "
            f"text; choose a model.dtype other than {model.dtype_name}."
        )
    return Code(code.acts.cpu(), code.indices.cpu()), is_outlier(x, largest_norm).tolist()


def _strongest(
    acts: Float[Tensor, " k"], indices: Int[Tensor, " k"], top: int
) -> list[FeatureActivation]:
    values, order = acts.sort(descending=True)
    pairs = zip(indices[order[:top]].tolist(), values[:top].tolist(), strict=True)
    return [FeatureActivation(index=i, activation=a) for i, a in pairs if a > 0]
