"""Decoder rows of an index's SAE, read from its file in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from sae_engine.features.index.format import open_decoder


class DecoderRows:
    """`W_dec` of an `sae.safetensors`, with rows scaled to unit norm; zero rows stay zero."""

    def __init__(self, path: Path) -> None:
        """Raises `IndexDamagedError` if the file has no decoder."""
        self._rows = open_decoder(path, framework="pt")
        self.d_sae, self.d_in = self._rows.get_shape()

    def chunks(self, num_rows: int) -> Iterator[tuple[int, Float[Tensor, "n d_in"]]]:
        """Chunks of up to `num_rows` rows in float32, each with the index of its first row."""
        for first in range(0, self.d_sae, num_rows):
            yield first, normalize(self._rows[first : first + num_rows].float(), dim=1)
