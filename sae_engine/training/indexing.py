"""Codes of index corpora, encoded while the text is read; one reading serves several runs.

Driven by `heldout`; `features.index.build` reads the codes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae_engine.activations.heldout import Heldout, num_rows_holding
from sae_engine.activations.outliers import is_ordinary, ordinary_text
from sae_engine.features.index.build import IndexCorpus
from sae_engine.features.index.codes import CorpusEncoder
from sae_engine.files import room_needed
from sae_engine.interrupt import CheckStop
from sae_engine.progress import Part
from sae_engine.sae.autoencoders import SAE
from sae_engine.sae.inference import open_coder


class EncodedCorpus(NamedTuple):
    """A run's index corpus, encoded by its SAE of step `step`."""

    step: int
    corpus: IndexCorpus
    seconds: float
    """Time that encoding took."""


class IndexReading:
    """Encodes the first rows that hold `num_tokens` tokens, without outliers, for one run."""

    def __init__(
        self,
        heldout: Heldout,
        sae: SAE,
        folder: Path,
        *,
        step: int,
        hook: int,
        num_tokens: int,
        limit: float,
    ) -> None:
        """Codes are written to `folder`. `limit` is the norm above which tokens are outliers."""
        self.num_tokens = num_tokens
        self.end = int(heldout.row_starts[num_rows_holding(num_tokens, heldout.row_starts)])
        """Number of tokens in these rows."""
        self._heldout, self._sae = heldout, sae
        self._folder, self._step = folder, step
        self._hook, self._limit = hook, limit
        self._kept: list[np.ndarray] = []
        self._seconds = 0.0
        self._open_encoder: CorpusEncoder | None = None

    def add(self, values: Sequence[Tensor], first: int) -> None:
        """Encode activations [n, d_in] at every hook, those of tokens `first` and following."""
        x = values[self._hook][: max(0, self.end - first)]
        kept = is_ordinary(x, self._limit)
        self._kept.append(kept)
        began = time.perf_counter()
        with room_needed(self._folder):
            self._encoder().add(x if kept.all() else x[torch.from_numpy(kept)])
        self._seconds += time.perf_counter() - began

    def finish(self) -> EncodedCorpus:
        """Raises `UserError` if every token is an outlier."""
        text = ordinary_text(
            self._heldout, self.num_tokens, np.concatenate(self._kept), self._limit
        )
        began = time.perf_counter()
        with room_needed(self._folder):
            codes = self._encoder().finish()
        seconds = self._seconds + time.perf_counter() - began
        return EncodedCorpus(self._step, IndexCorpus(codes, *text), seconds)

    def close(self) -> None:
        if self._open_encoder is not None:
            self._open_encoder.close()

    def _encoder(self) -> CorpusEncoder:
        if self._open_encoder is None:
            sae = self._sae
            self._open_encoder = CorpusEncoder(
                self._folder,
                open_coder(sae).encode,
                d_sae=sae.d_sae,
                k=sae.k,
                device=sae.W_dec.device,
            )
        return self._open_encoder


def encode_together(
    heldout: Heldout, readings: Sequence[IndexReading], check_stop: CheckStop
) -> Generator[Part, None, list[EncodedCorpus | None]]:
    """Read the text once for all; return what each reading encoded.

    Errors of the first reading are raised. Another that fails gives None, and its run, which then
    reads the text by itself, meets the error again.
    """
    done, total = 0, max(reading.end for reading in readings)
    failed: set[IndexReading] = set()
    found: dict[IndexReading, EncodedCorpus] = {}

    def for_each(work: Callable[[IndexReading], None]) -> None:
        for reading in readings:
            check_stop()
            try:
                if reading not in failed:
                    work(reading)
            except Exception:
                if reading is readings[0]:
                    raise
                failed.add(reading)

    try:
        for values in heldout.parts(max(reading.num_tokens for reading in readings), check_stop):
            for_each(lambda reading, values=values, first=done: reading.add(values, first))
            done += len(values[0])
            yield Part(done, total, "tokens")
        for_each(lambda reading: found.update({reading: reading.finish()}))
    finally:
        for reading in readings:
            reading.close()
    return [found.get(reading) for reading in readings]
