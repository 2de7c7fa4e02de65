"""Decoder rows of a published SAE, read from its file a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import normalize

from sae_engine.errors import UserError


class DecoderRows:
    """`W_dec` of an `sae.safetensors`, its rows scaled to unit norm; rows of zeros stay so."""

    def __init__(self, path: Path) -> None:
        """Raises `UserError` for a file that holds no decoder."""
        try:
            self._file = safe_open(path, framework="pt")
            self._rows = self._file.get_slice("W_dec")
            self.d_sae, self.d_in = self._rows.get_shape()
        except (OSError, SafetensorError, ValueError) as error:
            raise UserError(f"'{path}' is not an SAE in this format: {error}") from error

    def chunks(self, num_rows: int) -> Iterator[tuple[int, Float[Tensor, "n d_in"]]]:
        """Up to `num_rows` rows at a time in float32, each time with the number of the first."""
        for first in range(0, self.d_sae, num_rows):
            yield first, normalize(self._rows[first : first + num_rows].float(), dim=1)
