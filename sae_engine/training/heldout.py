"""What runs do with held-out text: evaluate, measure the cross-entropy, build feature indexes.

Driven by `run`, which decides when.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sae_engine.activations.feed import Feed
from sae_engine.activations.heldout import Heldout, num_rows_holding
from sae_engine.activations.outliers import (
    OrdinaryTokens,
    largest_norm,
    median_norm,
    ordinary_tokens,
)
from sae_engine.errors import DiskFullError, UserError
from sae_engine.features.index.build import build_index
from sae_engine.files import RunFolder
from sae_engine.interrupt import CheckStop
from sae_engine.model.language_model import LanguageModel, SpliceModel
from sae_engine.progress import phases
from sae_engine.sae.autoencoders import SAE
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import AnyRecord, NoticeRecord, PhaseRecord
from sae_engine.sizes import TOKENS_PER_BLOCK, num_heldout, num_stored
from sae_engine.training.evaluate import measure_cross_entropy, reconstruction_metrics
from sae_engine.training.indexing import EncodedCorpus, IndexReading, encode_together
from sae_engine.training.stopping import Halted

READING = "reading held-out text"
"""The phase, in words."""
NO_FEATURES = (
    "The activation files hold no token ids, so this run has no features to show; its metrics are "
    "measured as usual."
)


class SharedHeldout:
    """The held-out activations of all runs on a pass, and the parts of the language model that only
    held-out work needs. Each is loaded at its first use.
    """

    def __init__(self, feed: Feed, configs: Sequence[RunConfig], folder: Path) -> None:
        self.feed = feed
        self.works: list[HeldoutWork] = []
        """Those of all runs on the pass."""
        self._folder = folder
        self._num_tokens = max(map(num_heldout, configs))
        self._num_stored = max(map(num_stored, configs))
        self._heldout: Heldout | None = None
        self._whole_model: SpliceModel | None = None
        self._causal_lm: object | None = None

    def opening(self, check_stop: CheckStop) -> Iterator[PhaseRecord]:
        """Read the held-out text, unless that has been done, and report the progress."""
        if self._heldout is None:
            yield PhaseRecord(phase=READING)
            self._heldout = yield from phases(
                READING,
                self.feed.opening_heldout(
                    self._num_tokens, self._folder, check_stop, self._num_stored
                ),
            )

    @property
    def heldout(self) -> Heldout:
        """Available once it is open."""
        assert self._heldout is not None
        return self._heldout

    def whole_model(self, model: LanguageModel) -> SpliceModel:
        """The whole language model, kept until `release`."""
        if self._whole_model is None:
            self._causal_lm = None  # its head is in the whole model too
            self._whole_model = model.full()
        return self._whole_model

    def unembedding(self, model: LanguageModel, hook: int) -> Tensor | None:
        """See `LanguageModel.unembedding`; what it is computed from is kept until `release`."""
        if self._whole_model is not None:
            return model.unembedding(hook, self._whole_model.model)
        if self._causal_lm is None:
            self._causal_lm = model.with_head()
        return model.unembedding(hook, self._causal_lm)

    def release(self) -> None:
        """Free the parts of the language model that training does not need."""
        self._whole_model = self._causal_lm = None

    def close(self) -> None:
        self.release()
        for work in self.works:
            work.close()
        if self._heldout is not None:
            self._heldout.close()


class Ending(NamedTuple):
    """The SAE of a run that ends, and its step."""

    sae: SAE
    step: int


def _never_ending() -> Ending | None:
    """Of a run that is alone."""


class HeldoutWork:
    """One run's work with the held-out activations; `check_stop` is called throughout."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        shared: SharedHeldout,
        check_stop: CheckStop,
        ending: Callable[[], Ending | None] = _never_ending,
    ) -> None:
        """`ending` returns what is to be indexed if the run is about to end, else None."""
        shared.works.append(self)
        self._ending = ending
        self._is_indexed = False
        """Whether the final index has been begun."""
        self._encoded: EncodedCorpus | None = None
        """The final index's corpus, if another run's reading encoded it."""
        self._config = config
        self._folder = folder
        self._shared = shared
        self._hook = shared.feed.hook_of(config)
        self._check_stop = check_stop
        self._announced = False
        self.norm_limit = math.inf
        """Tokens whose activation has a larger norm are left out of everything; set it first."""

    def open(self) -> Iterator[AnyRecord]:
        """Read the held-out text; report it once, and whether it is shorter than wanted."""
        if self._announced:
            return
        yield from self._shared.opening(self._check_stop)
        heldout = self._shared.heldout
        self._announced = True
        wanted = num_heldout(self._config)
        if heldout.num_tokens < wanted:
            yield NoticeRecord(
                level="warning",
                message=f"The held-out text has {heldout.num_tokens:,} tokens, fewer than the "
                f"{wanted:,} requested; evaluation and feature index use all of it.",
            )
        if heldout.token_ids is None:
            yield NoticeRecord(level="warning", message=NO_FEATURES)
        if heldout.num_context:
            roles = " or ".join(self._config.data.train_roles or ())
            yield NoticeRecord(
                level="info",
                message=f"Of {heldout.num_context + heldout.num_tokens:,} held-out tokens, "
                f"{heldout.num_context:,} are only read as context, because they are not in a "
                f"message of {roles} (data.train_roles); training leaves such tokens out too, and "
                "counts its tokens without them.",
            )

    def measure_norm_limit(self) -> None:
        """Set `norm_limit` from the held-out tokens, for an SAE that is not trained here."""
        values = self._shared.heldout.read(self._hook, TOKENS_PER_BLOCK, self._check_stop)
        multiple = self._config.data.max_norm_multiple
        self.norm_limit = largest_norm(median_norm(values[:TOKENS_PER_BLOCK]), multiple)

    def reconstruction(self, sae: SAE, num_tokens: int) -> dict[str, float]:
        """Held-out metrics of a folded SAE over the first `num_tokens` tokens."""
        tokens = self._read(num_tokens)
        found = reconstruction_metrics(sae, tokens.activations, self._check_stop)
        found["eval_outlier_tokens"] = tokens.num_outliers
        overlap = self._shared.feed.overlap
        if overlap is not None and overlap.share is not None:
            found["heldout_overlap"] = overlap.share
        return found

    def cross_entropy(self, sae: SAE) -> Generator[PhaseRecord, None, dict[str, float]]:
        """CE delta and scores of a folded SAE over the first `train.ce_tokens` tokens; none if
        their text is not known.
        """
        heldout = self._shared.heldout
        if heldout.ids is None or heldout.at is None:
            return {}
        yield PhaseRecord(phase="loading the whole language model")
        model = self._shared.feed.load_model(self._check_stop)
        if model is None:
            return {}
        num_tokens = self._config.train.ce_tokens
        tokens = self._read(num_tokens)
        num_rows = num_rows_holding(num_tokens, heldout.row_starts)
        ids = torch.from_numpy(heldout.ids[:num_rows])
        at = torch.from_numpy(heldout.at[:num_rows].copy())
        at[at.clone()] = torch.from_numpy(tokens.kept)
        mean = tokens.activations[:].float().mean(0)
        whole = self._shared.whole_model(model)
        parts = measure_cross_entropy(
            whole, sae, ids, mean, self._check_stop, hook=self._hook, at=at
        )
        return (yield from phases("measuring cross-entropy", parts))

    def index(self, sae: SAE, step: int, *, final: bool) -> Iterator[AnyRecord]:
        """Build and publish the feature index of a folded SAE; nothing if tokens are unknown.

        A build that fails ends in a warning, so that no run is lost for it; only a full disk raises
        `DiskFullError`, because the run's own files do not fit either.
        """
        self._is_indexed = final
        try:
            yield from self._build_index(sae, step, final=final)
        except (DiskFullError, Halted):
            raise
        except Exception as error:
            logging.getLogger(__name__).exception("building the feature index of step %d", step)
            cause = str(error) if isinstance(error, UserError) else f"{type(error).__name__}."
            yield NoticeRecord(
                level="warning",
                message=f"The feature index of step {step:,} could not be built, so it has no "
                f"features; the SAE and the run are not affected. {cause}",
                step=step,
            )
        finally:
            self.close()

    def _build_index(self, sae: SAE, step: int, *, final: bool) -> Iterator[AnyRecord]:
        if self._shared.heldout.token_ids is None:
            return
        model = self._shared.feed.load_model(self._check_stop)
        if model is None:
            return
        encoded = yield from self._encode(Ending(sae, step), final=final)
        yield PhaseRecord(phase="sorting the feature index")
        record = build_index(
            self._folder,
            step=step,
            tokens=step * self._config.train.batch_size_tokens,
            corpus=encoded.corpus,
            W_dec=sae.W_dec.detach(),
            tokenizer=model.tokenizer,
            vocab_size=model.vocab_size,
            write_sae=sae.save,
            unembed=self._shared.unembedding(model, self._hook) if final else None,
            largest_norm=self.norm_limit,
            final=final,
            check_stop=self._check_stop,
        )
        yield record.model_copy(update={"seconds": record.seconds + encoded.seconds})

    def _encode(self, what: Ending, *, final: bool) -> Generator[PhaseRecord, None, EncodedCorpus]:
        """Encode the index corpus. The language model reads tokens that are not stored only once
        for all runs that end together.
        """
        if final and self._encoded is not None and self._encoded.step == what.step:
            return self._encoded
        works: list[HeldoutWork] = [self]
        readings = [self._reading(what, final=final)]
        for work in self._shared.works if final and self._reads_on() else ():
            other = work._to_index() if work is not self and work._reads_on() else None
            if other is not None:
                works.append(work)
                readings.append(work._reading(other, final=True))
        phase = "building the feature index" if final else "indexing features"
        work_together = encode_together(self._shared.heldout, readings, self._check_stop)
        own, *others = yield from phases(phase, work_together)
        for work, encoded in zip(works[1:], others, strict=True):
            work._encoded = encoded
        assert own is not None
        return own

    def _to_index(self) -> Ending | None:
        return None if self._is_indexed else self._ending()

    def _reads_on(self) -> bool:
        """Whether the final index reads further than the stored tokens."""
        return self._config.index.tokens > self._shared.heldout.num_stored

    def _reading(self, what: Ending, *, final: bool) -> IndexReading:
        settings = self._config.index
        return IndexReading(
            self._shared.heldout,
            what.sae,
            self._folder.index_codes,
            step=what.step,
            hook=self._hook,
            num_tokens=settings.tokens if final else min(settings.snapshot_tokens, settings.tokens),
            limit=self.norm_limit,
        )

    def _read(self, num_tokens: int) -> OrdinaryTokens:
        return ordinary_tokens(
            self._shared.heldout, self._hook, num_tokens, self.norm_limit, self._check_stop
        )

    def close(self) -> None:
        """Remove what remains of an index that was not built."""
        shutil.rmtree(self._folder.index_codes, ignore_errors=True)
