"""A person's own text: which features are active on it, and how it goes on when they are steered.

Fed by `model_cache`, or by anyone who has loaded a language model and an SAE; read by the
inference process.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_engine.errors import UserError
from sae_engine.features.index.vocabulary import INVALID_BYTES, shown_tokens, token_bytes
from sae_engine.model.hook_points import text_config
from sae_engine.model.language_model import LanguageModel, SpliceModel
from sae_engine.sae.autoencoders import SAE, Code
from sae_engine.schema.playground import (
    MAX_TEXT_TOKENS,
    ExcludedPosition,
    FeatureActivation,
    ReadToken,
    Side,
    SteerToken,
    TextReading,
)


@dataclass(frozen=True)
class ProbeModel:
    """A language model, read at its first hook, as text is read with it."""

    model: LanguageModel
    load_whole: Callable[[], SpliceModel]
    """Loads the layers that only text which goes on needs."""
    pieces: Sequence[bytes]
    """What every token id stands for, as `vocabulary.token_bytes` tells."""

    @classmethod
    def of(cls, model: LanguageModel) -> ProbeModel:
        return cls(model, model.full, token_bytes(model.tokenizer, model.vocab_size))

    @cached_property
    def whole(self) -> SpliceModel:
        return self.load_whole()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS; raises `UserError` if it has none."""
        ids: list[int] = self.model.tokenizer.encode(text, add_special_tokens=False).ids
        if not ids:
            raise UserError(f"The text '{text[:50]}' has no token in this model's vocabulary.")
        return ids

    def shown(self, ids: Sequence[int]) -> list[str]:
        return shown_tokens(self.pieces[i] for i in ids)

    def why_excluded(self, id_: int) -> ExcludedPosition | None:
        if id_ not in self.model.excluded_ids:
            return None
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
) -> TextReading:
    """The `top` strongest features of every token of `text`, and those of `features` at every
    token.

    The text is read as in training, in rows of `ctx_len` tokens, each after a BOS if the model has
    one. Raises `UserError` for more than `MAX_TEXT_TOKENS` tokens, and where something is not
    finite.
    """
    ids = model.encode(text)
    if len(ids) > MAX_TEXT_TOKENS:
        raise UserError(
            f"The text has {len(ids):,} tokens, and at most {MAX_TEXT_TOKENS:,} are read at once; "
            "shorten it."
        )
    bos = [] if model.model.bos_id is None else [model.model.bos_id]
    width = ctx_len - len(bos)
    shown = model.shown(ids)
    row_ids: list[list[int]] = []
    row_texts: list[str] = []
    for start in range(0, len(ids), width):
        row_ids.append(bos + ids[start : start + width])
        row_texts += model.shown(bos) + shown[start : start + width]
    code = _encode(model.model, sae, row_ids)
    listed = [_strongest(acts, indices, top) for acts, indices in zip(*code, strict=True)]
    tokens = [
        ReadToken(
            id=id_,
            text=token,
            excluded=(excluded := model.why_excluded(id_)),
            num_active=0 if excluded else int((acts > 0).sum()),
            total=0.0 if excluded else float(acts.sum()),
            features=[] if excluded else strongest,
        )
        for id_, token, acts, strongest in zip(
            chain.from_iterable(row_ids), row_texts, code.acts, listed, strict=True
        )
    ]
    ordinary = torch.tensor([token.excluded is None for token in tokens])
    columns = [
        torch.where((code.indices == index) & ordinary[:, None], code.acts, 0).sum(dim=1).tolist()
        for index in features
    ]
    return TextReading(tokens=tokens, activations=columns)


@torch.inference_mode()
def _encode(model: LanguageModel, sae: SAE, rows: Sequence[Sequence[int]]) -> Code:
    """Codes of all positions of rows, of which only the last may be shorter, on the CPU."""
    whole = [torch.tensor(rows[:-1])] if len(rows) > 1 else []
    parts = [model.activations(ids).flatten(0, 1) for ids in [*whole, torch.tensor(rows[-1:])]]
    x = torch.cat(parts).to(sae.W_dec.device).float()
    code = sae.encode(x)
    if not (x.isfinite().all() and code.acts.isfinite().all()):
        raise UserError(
            f"The activations of '{model.config.name}' or its features are not finite on this "
            f"text; read it in another model.dtype than {str(model.dtype).removeprefix('torch.')}."
        )
    return Code(code.acts.cpu(), code.indices.cpu())


def _strongest(
    acts: Float[Tensor, " k"], indices: Int[Tensor, " k"], top: int
) -> list[FeatureActivation]:
    values, order = acts.sort(descending=True)
    pairs = zip(indices[order[:top]].tolist(), values[:top].tolist(), strict=True)
    return [FeatureActivation(index=i, activation=a) for i, a in pairs if a > 0]


def steer(
    model: ProbeModel,
    sae: SAE,
    prompt: str,
    activations: Mapping[int, float],
    *,
    max_new_tokens: int = 40,
    temperature: float = 1.0,
    seed: int = 0,
) -> Iterator[SteerToken]:
    """How `prompt` goes on, plain and steered in turns, token by token.

    Steered means that the decoder row of every feature f of `activations`, times `activations[f]`,
    is added at the hook at every position but BOS, pad and eos. Both texts are drawn with the
    random numbers of `seed`. Raises `UserError` for a prompt that leaves no room.
    """
    ids = model.encode(prompt)
    if model.model.bos_id is not None:
        ids = [model.model.bos_id, *ids]
    longest = text_config(model.whole.model.config).max_position_embeddings
    if len(ids) + max_new_tokens > longest:
        raise UserError(
            f"The prompt has {len(ids):,} tokens, and {max_new_tokens:,} more pass the "
            f"{longest:,} positions of this model; shorten it or ask for fewer."
        )
    directions: dict[Side, Tensor | None] = {
        "plain": None,
        "steered": direction(sae, activations),
    }
    running: dict[Side, Iterator[int]] = {
        side: generate(
            model.whole,
            ids,
            add=add,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
        )
        for side, add in directions.items()
    }
    decoders = {side: codecs.getincrementaldecoder("utf-8")(INVALID_BYTES) for side in running}
    while running:
        for side in list(running):
            id_ = next(running[side], None)
            if id_ is None:
                del running[side]
            piece = b"" if id_ is None else model.pieces[id_]
            text = decoders[side].decode(piece, final=id_ is None)
            if id_ is not None or text:
                yield SteerToken(side=side, text=text)


def direction(sae: SAE, activations: Mapping[int, float]) -> Float[Tensor, " d_in"]:
    """What features write to the hook when they are active so much."""
    rows = sae.W_dec.detach()[list(activations)]
    return torch.tensor(list(activations.values()), device=rows.device) @ rows


def generate(
    model: SpliceModel,
    ids: Sequence[int],
    *,
    add: Float[Tensor, " d_in"] | None = None,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> Iterator[int]:
    """Ids that follow `ids`, up to the eos, which is left out.

    `add` is added to the activations at the first hook, at ordinary positions. With a
    `temperature` of 0 the likeliest id is taken. Raises `UserError` where the logits are not
    finite.
    """
    generator = torch.Generator().manual_seed(seed)
    given, past = list(ids), None
    for _ in range(max_new_tokens):
        logits, past = model.next_logits(torch.tensor([given]), past, add)
        id_ = _choose(logits.cpu(), temperature, generator)
        if id_ == model.prefix.eos_id:
            return
        yield id_
        given = [id_]


def _choose(logits: Float[Tensor, " vocab"], temperature: float, generator: torch.Generator) -> int:
    if not logits.isfinite().all():
        raise UserError(
            "The language model's logits are not finite with these strengths; lower them."
        )
    if temperature == 0:
        return int(logits.argmax())
    # The largest is made 0 first: a tiny temperature then gives -inf, never NaN.
    likely = torch.softmax((logits - logits.max()) / temperature, dim=0)
    return int(torch.multinomial(likely, 1, generator=generator))
