"""How a language model continues a prompt, plain and steered by features.

Called by the playground's worker process and by users of the library.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sae_engine.errors import UserError
from sae_engine.features.index.vocabulary import INVALID_BYTES
from sae_engine.model.hook_points import max_positions
from sae_engine.model.language_model import SpliceModel
from sae_engine.playground.read import ProbeModel
from sae_engine.sae.autoencoders import SAE
from sae_engine.schema.playground import Side, SteerToken

GREEDY_TEMPERATURE = 1e-6
"""Below it, the most likely id is taken: float32 cannot divide by much less."""


def steer(
    model: ProbeModel,
    sae: SAE,
    prompt: str,
    activations: Mapping[int, float],
    *,
    max_new_tokens: int = 40,
    temperature: float = 1.0,
    seed: int = 0,
    largest_norm: float = math.inf,
) -> Iterator[SteerToken]:
    """Continue `prompt` plain and steered, yielding one token of each in turn.

    For the steered text, `activations[f]` times the decoder row of every feature f is added at the
    hook, at every position except BOS, pad, eos and outliers, whose activation has a norm above
    `largest_norm`. Both texts are sampled with the same random numbers, from `seed`. Raises
    `UserError` for a prompt too long for the model.
    """
    ids = model.encode(prompt)
    if model.model.bos_id is not None:
        ids = [model.model.bos_id, *ids]
    longest = max_positions(model.whole.model.config)
    if longest is not None and len(ids) + max_new_tokens > longest:
        raise UserError(
            f"The prompt has {len(ids):,} tokens, and {max_new_tokens:,} more exceed the "
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
            largest_norm=largest_norm,
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
    """What features with these activations add to the activations at the hook."""
    rows = sae.W_dec.detach()[list(activations)]
    return torch.tensor(list(activations.values()), device=rows.device) @ rows


def generate(
    model: SpliceModel,
    ids: Sequence[int],
    *,
    add: Float[Tensor, " d_in"] | None = None,
    largest_norm: float = math.inf,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> Iterator[int]:
    """Ids that continue `ids`, up to and excluding eos.

    `add` is added to the activations at the first hook, at ordinary positions whose norm is at most
    `largest_norm`. A `temperature` of 0 always takes the most likely id. Raises `UserError` if the
    logits are not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    given, past = list(ids), None
    for _ in range(max_new_tokens):
        logits, past = model.next_logits(
            torch.tensor([given]), past, add, largest_norm=largest_norm
        )
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
    if temperature < GREEDY_TEMPERATURE:
        return int(logits.argmax())
    likely = torch.softmax((logits - logits.max()) / temperature, dim=0)
    return int(torch.multinomial(likely, 1, generator=generator))
