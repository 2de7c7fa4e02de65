"""What tells a language model from another of the same name, such as a newer version.

A run keeps it in its folder when it begins. A resumed run and the playground compare the model they
loaded with it.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from sae_engine.errors import UserError
from sae_engine.files import published_file
from sae_engine.model.language_model import LanguageModel

VALUES_PER_TENSOR = 4
TOLERANCE = 2**-6
"""Relative difference that rounding to half precision, in any order, stays below."""


class ModelIdentity(BaseModel):
    """The vocabulary, and a few values of every tensor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    vocab_size: int
    vocabulary: str
    """SHA-256 of all tokens with their ids."""
    weights: dict[str, list[float]]

    @classmethod
    def of(cls, model: LanguageModel) -> ModelIdentity:
        entries = sorted(model.tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        digest = hashlib.sha256(repr(entries).encode("utf-8", "surrogatepass")).hexdigest()
        weights = {name: _some(tensor) for name, tensor in model.parameters() if not tensor.is_meta}
        return cls(
            name=model.config.name, vocab_size=model.vocab_size, vocabulary=digest, weights=weights
        )

    def save(self, path: Path) -> None:
        """Raises `DiskFullError`."""
        with published_file(path) as temporary:
            temporary.write_text(self.model_dump_json(), "utf-8")

    def is_same(self, other: ModelIdentity) -> bool:
        """Whether the layers that both have are the same, in whatever dtype they were loaded."""
        return self.vocabulary == other.vocabulary and all(
            _are_close(self.weights[name], other.weights[name])
            for name in self.weights.keys() & other.weights.keys()
        )


def require_same_model(found: ModelIdentity, path: Path, *, vocab_size: int | None = None) -> None:
    """Raise `UserError` if the model is not the one whose identity is in the file at `path`.

    Older runs have no such file; then only `vocab_size`, if given, is compared.
    """
    try:
        kept = ModelIdentity.model_validate_json(path.read_bytes())
        is_same = found.is_same(kept)
    except (OSError, ValidationError):
        is_same = vocab_size in (None, found.vocab_size)
    if not is_same:
        raise UserError(
            f"The language model '{found.name}' has changed since this run began, so the "
            "SAE does not fit its activations; restore the model it was trained on, or start a new "
            "run."
        )


def _some(tensor: torch.Tensor) -> list[float]:
    flat = tensor.detach().flatten()
    places = torch.arange(1, VALUES_PER_TENSOR + 1, device=flat.device) * flat.numel()
    return flat[places // (VALUES_PER_TENSOR + 1)].float().tolist()


def _are_close(one: list[float], other: list[float]) -> bool:
    largest = max((abs(value) for value in one), default=0.0)
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE * largest)
        for a, b in zip(one, other, strict=True)
    )
