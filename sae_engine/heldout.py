"""What a run does with its held-out text: evaluate, measure the cross-entropy, build feature
indexes.

Fed by `train`, which decides when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from sae_engine.activations import HeldoutActivations
from sae_engine.corpus import Packing, heldout_rows
from sae_engine.evaluate import cross_entropy_metrics, reconstruction_metrics
from sae_engine.feature_index.build import IndexCorpus, build_index
from sae_engine.files import RunFolder
from sae_engine.language_model import LanguageModel
from sae_engine.sae import TopKSAE
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import AnyRecord, NoticeRecord, PhaseRecord, SnapshotRecord


class HeldoutWork:
    """The held-out text of one run, opened at its first use and removed at `close`."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        model: LanguageModel,
        packing: Packing,
        check_stop: Callable[[], None],
    ) -> None:
        self._config = config
        self._folder = folder
        self._model = model
        self._packing = packing
        self._check_stop = check_stop
        self._activations: HeldoutActivations | None = None

    def open(self) -> Iterator[AnyRecord]:
        """Read the held-out text if that has not been done; say so, and if there is less than
        asked for.
        """
        if self._activations is not None:
            return
        yield PhaseRecord(phase="reading held-out text")
        asked = max(self._config.data.heldout_tokens, self._config.index.tokens)
        ids = heldout_rows(self._config.data, self._packing, asked + asked // 50)
        self._activations = HeldoutActivations(self._model, ids, asked, self._folder.index_corpus)
        have = self._activations.num_tokens
        if have < asked:
            yield NoticeRecord(
                level="warning",
                message=f"The held-out text has {have:,} tokens, fewer than the {asked:,} "
                "asked for; evaluation and feature index use what there is.",
            )

    def reconstruction(self, sae: TopKSAE, num_tokens: int) -> dict[str, float]:
        """Held-out metrics of a folded SAE over the first `num_tokens` tokens."""
        return reconstruction_metrics(sae, self._first(num_tokens), self._check_stop)

    def cross_entropy(self, sae: TopKSAE) -> dict[str, float]:
        """CE delta and scores of a folded SAE over the first `train.ce_tokens` tokens."""
        assert self._activations is not None
        num_tokens = self._config.train.ce_tokens
        rows = self._activations.rows_for(num_tokens)
        mean = self._first(num_tokens).float().mean(0)
        ids = torch.from_numpy(self._activations.ids[:rows])
        return cross_entropy_metrics(self._model.full(), sae, ids, mean, self._check_stop)

    def index(self, sae: TopKSAE, step: int, *, final: bool) -> SnapshotRecord:
        """Build and publish the feature index of a folded SAE."""
        assert self._activations is not None
        settings = self._config.index
        num_tokens = settings.tokens if final else min(settings.snapshot_tokens, settings.tokens)
        activations = self._first(num_tokens)
        rows = self._activations.rows_for(num_tokens)
        corpus = IndexCorpus(
            _as_array(activations),
            self._activations.token_ids[: len(activations)],
            self._activations.row_starts[: rows + 1],
        )
        return build_index(
            self._folder,
            step=step,
            tokens=step * self._config.train.batch_size_tokens,
            corpus=corpus,
            encode=lambda x: sae.encode(x.to(sae.W_dec.device).float()),
            W_dec=sae.W_dec.detach(),
            k=sae.k,
            tokenizer=self._model.tokenizer,
            vocab_size=self._model.vocab_size,
            write_sae=sae.save,
            unembed=self._model.unembedding() if final else None,
            final=final,
            check_stop=self._check_stop,
        )

    def close(self) -> None:
        if self._activations is not None:
            self._activations.close()

    def _first(self, num_tokens: int) -> torch.Tensor:
        assert self._activations is not None
        return self._activations.first(num_tokens, self._check_stop)


def _as_array(activations: torch.Tensor) -> np.ndarray:
    """The tensor's memory as numpy sees it; bfloat16, which numpy lacks, as uint16."""
    return (
        activations.view(torch.uint16) if activations.dtype == torch.bfloat16 else activations
    ).numpy()
