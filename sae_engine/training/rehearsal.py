"""Everything that a run will ask of its language model, tried once on a few tokens before training.

A model that fails in one part is refused at once rather than when that part is due, at the end.
Called by `loop` and `pretrained`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from sae_engine.activations.stream import extract
from sae_engine.errors import UserError
from sae_engine.features.index.build import IndexCorpus, build_index
from sae_engine.features.index.codes import CorpusEncoder
from sae_engine.files import RunFolder
from sae_engine.interrupt import CheckStop, never_stop
from sae_engine.model.language_model import LanguageModel, SpliceModel
from sae_engine.model.loading import unusable
from sae_engine.model_files import not_a_decoder
from sae_engine.training.stopping import Halted

TEXT = "A few words used for a trial pass, so that errors appear before training starts."
REHEARSING = "trying the language model on a few tokens"
"""The phase, in words."""
NUM_TOKENS = 12
NUM_LATENTS = 8


def rehearse(model: LanguageModel, check_stop: CheckStop = never_stop) -> None:
    """Read activations, measure the cross-entropy, compute logits and build a feature index.

    The layers that are loaded stand for the whole model: its final norm and head are put on top of
    them, so that only these are read from the files, and freed afterwards. The layers behind the
    hook point are only looked for in the files; they are loaded when the cross-entropy is first
    measured, as without a rehearsal. The states of torch's random number generators are left as
    they were.

    Raises `UserError`, which names the part that failed.
    """
    ids = _token_ids(model)
    gpus = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), torch.inference_mode():
        with _part(model, "reading its activations"):
            _read(model, ids)
        check_stop()
        with _part(model, "looking for its tensors"):
            model.check_complete()
        with _part(model, "loading its head"):
            causal_lm = model.with_head()
        with _part(model, "measuring its cross-entropy"):
            _cross_entropy(SpliceModel(model, causal_lm), ids)
        check_stop()
        with _part(model, "computing the logits of features"):
            unembed = model.unembedding(0, causal_lm)
        with _part(model, "building a feature index"):
            _index(model, ids, unembed, check_stop)


@contextmanager
def _part(model: LanguageModel, doing: str) -> Generator[None]:
    try:
        yield
    except (UserError, Halted, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever architectures raise
        raise unusable(model.config.name, doing, error) from error


def _token_ids(model: LanguageModel) -> Int[Tensor, "1 n"]:
    bos = [] if model.bos_id is None else [model.bos_id]
    text = model.tokenizer.encode(TEXT, add_special_tokens=False).ids
    some = [id_ for id_ in text if id_ not in model.excluded_ids][:NUM_TOKENS]
    return torch.tensor([bos + some])


def _read(model: LanguageModel, ids: Int[Tensor, "1 n"]) -> None:
    """Raise `UserError` if activations are not finite or depend on later tokens."""
    keep = ids.shape[1] - ids.shape[1] // 2
    other = torch.cat([ids[:, :keep], ids[:, keep:].flip(1)], dim=1)
    tolerance = 1e-4 if model.dtype == torch.float32 else 0.03
    for x, y in zip(model.all_activations(ids), model.all_activations(other), strict=True):
        x, y = x[:, :keep].float(), y[:, :keep].float()
        if not x.isfinite().all():
            raise UserError(
                f"The activations of '{model.config.name}' are not finite in "
                f"{model.dtype_name}; choose another model.dtype."
            )
        if (x - y).norm() > tolerance * x.norm():
            raise not_a_decoder(model.config.name)


def _cross_entropy(model: SpliceModel, ids: Int[Tensor, "1 n"]) -> None:
    """Raise `UserError` unless the cross-entropy is that of the model's own logits, also when
    activations are replaced by themselves at a hook.
    """
    prefix = model.prefix
    logits = model.model(ids.to(prefix.device), use_cache=False).logits[0, :-1].float()
    counted = ~prefix.special_mask(ids)[0, :-1]
    targets = ids[0, 1:].to(logits.device)
    own = cross_entropy(logits, targets, reduction="none")[counted.to(logits.device)].sum().item()
    measured = [model.cross_entropy(ids)[0]]
    for hook in range(len(prefix.hooks)):
        measured.append(model.cross_entropy(ids, lambda x: x, hook)[0])
    if max(abs(value - own) for value in measured) > 0.02 * abs(own):
        raise UserError(
            f"The cross-entropy of '{prefix.config.name}' cannot be measured: on a few tokens it "
            f"is {own:.4g} nats by the model's own logits, but {measured[0]:.4g} when measured and "
            f"{measured[-1]:.4g} with activations replaced by themselves."
        )


def _index(
    model: LanguageModel,
    ids: Int[Tensor, "1 n"],
    unembed: Float[Tensor, "vocab d_in"] | None,
    check_stop: CheckStop,
) -> None:
    """Build and discard an index of latents that are the first coordinates."""
    x = extract(model, ids)[0].float()
    W_dec = torch.eye(min(NUM_LATENTS, model.d_in), model.d_in, device=x.device)
    kept = ids[~model.special_mask(ids)].numpy().astype(np.uint32)

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        acts = (x @ W_dec.T).relu()
        return acts, torch.arange(len(W_dec), device=x.device).expand_as(acts)

    with (
        TemporaryDirectory() as temporary,
        CorpusEncoder(
            Path(temporary), encode, d_sae=len(W_dec), k=len(W_dec), device=x.device
        ) as encoder,
    ):
        encoder.add(x)
        build_index(
            RunFolder(temporary),
            step=0,
            tokens=0,
            corpus=IndexCorpus(encoder.finish(), kept, np.array([0, len(kept)])),
            W_dec=W_dec,
            tokenizer=model.tokenizer,
            vocab_size=model.vocab_size,
            write_sae=Path.touch,
            unembed=unembed,
            final=True,
            check_stop=check_stop,
        )
