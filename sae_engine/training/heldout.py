"""What a run does with its held-out text: evaluate, measure the cross-entropy, build feature
indexes.

Fed by `train`, which decides when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from sae_engine.activations.feed import Feed
from sae_engine.activations.stream import Heldout, rows_for
from sae_engine.features.index.build import IndexCorpus, build_index
from sae_engine.files import RunFolder
from sae_engine.sae.autoencoders import SAE
from sae_engine.sae.inference import open_coder
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import AnyRecord, NoticeRecord, PhaseRecord, SnapshotRecord
from sae_engine.training.evaluate import cross_entropy_metrics, reconstruction_metrics

NO_FEATURES = (
    "The activation files hold no token ids, so this run has no features to show; its metrics are "
    "measured as always."
)


class SharedHeldout:
    """The held-out activations of all the runs on one pass, read at their first use."""

    def __init__(self, feed: Feed, configs: Sequence[RunConfig], folder: Path) -> None:
        self.feed = feed
        self._folder = folder
        self._num_tokens = max(max(c.data.heldout_tokens, c.index.tokens) for c in configs)
        self._opened: Heldout | None = None

    @property
    def is_open(self) -> bool:
        return self._opened is not None

    @property
    def activations(self) -> Heldout:
        if self._opened is None:
            self._opened = self.feed.open_heldout(self._num_tokens, self._folder)
        return self._opened

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()


class HeldoutWork:
    """What one run does with the held-out activations."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        shared: SharedHeldout,
        check_stop: Callable[[], None],
    ) -> None:
        self._config = config
        self._folder = folder
        self._shared = shared
        self._hook = shared.feed.hook_of(config)
        self._check_stop = check_stop
        self._announced = False

    def open(self) -> Iterator[AnyRecord]:
        """Read the held-out text if that has not been done; say so, and if there is less than
        asked for.
        """
        if self._announced:
            return
        self._announced = True
        if not self._shared.is_open:
            yield PhaseRecord(phase="reading held-out text")
        asked = max(self._config.data.heldout_tokens, self._config.index.tokens)
        have = self._shared.activations.num_tokens
        if have < asked:
            yield NoticeRecord(
                level="warning",
                message=f"The held-out text has {have:,} tokens, fewer than the {asked:,} "
                "asked for; evaluation and feature index use what there is.",
            )
        if self._shared.activations.token_ids is None:
            yield NoticeRecord(level="warning", message=NO_FEATURES)

    def reconstruction(self, sae: SAE, num_tokens: int) -> dict[str, float]:
        """Held-out metrics of a folded SAE over the first `num_tokens` tokens."""
        return reconstruction_metrics(sae, self._first(num_tokens), self._check_stop)

    def cross_entropy(self, sae: SAE) -> Iterator[dict[str, float]]:
        """CE delta and scores of a folded SAE over the first `train.ce_tokens` tokens, if their
        text is known.
        """
        heldout, model = self._shared.activations, self._shared.feed.model
        if heldout.ids is None or model is None:
            return
        num_tokens = self._config.train.ce_tokens
        ids = torch.from_numpy(heldout.ids[: rows_for(heldout, num_tokens)])
        mean = self._first(num_tokens).float().mean(0)
        yield cross_entropy_metrics(model.full(), sae, ids, mean, self._check_stop, hook=self._hook)

    def index(self, sae: SAE, step: int, *, final: bool) -> Iterator[SnapshotRecord]:
        """Build and publish the feature index of a folded SAE, if the tokens are known."""
        heldout, model = self._shared.activations, self._shared.feed.model
        if heldout.token_ids is None or model is None:
            return
        settings = self._config.index
        num_tokens = settings.tokens if final else min(settings.snapshot_tokens, settings.tokens)
        activations = self._first(num_tokens)
        corpus = IndexCorpus(
            _as_array(activations),
            heldout.token_ids[: len(activations)],
            heldout.row_starts[: rows_for(heldout, num_tokens) + 1],
        )
        coder = open_coder(sae)
        yield build_index(
            self._folder,
            step=step,
            tokens=step * self._config.train.batch_size_tokens,
            corpus=corpus,
            encode=lambda x: coder.encode(x.to(sae.W_dec.device).float()),
            W_dec=sae.W_dec.detach(),
            k=sae.k,
            tokenizer=model.tokenizer,
            vocab_size=model.vocab_size,
            write_sae=sae.save,
            unembed=model.unembedding() if final else None,
            final=final,
            check_stop=self._check_stop,
        )

    def _first(self, num_tokens: int) -> torch.Tensor:
        return self._shared.activations.first(self._hook, num_tokens, self._check_stop)


def _as_array(activations: torch.Tensor) -> np.ndarray:
    """The tensor's memory as numpy sees it; bfloat16, which numpy lacks, as uint16."""
    return (
        activations.view(torch.uint16) if activations.dtype == torch.bfloat16 else activations
    ).numpy()
