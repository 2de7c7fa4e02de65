"""One run while it trains: its optimizer steps, and the evaluations, feature snapshots and
checkpoints due between them.

Driven by `loop`, which feeds it batches, alone or beside other runs on the same pass.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence

from jaxtyping import Float
from torch import Tensor

from sae_engine.activations.feed import Contents, Feed
from sae_engine.activations.outliers import OutlierFilter
from sae_engine.activations.stream import ActivationStream, StreamState
from sae_engine.errors import ConfigError, UserError
from sae_engine.files import RunFolder
from sae_engine.model.identity import ModelIdentity, require_same_model
from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.sae.loss import ROUNDING
from sae_engine.sae.published import publish_sae
from sae_engine.sae.trainer import Budget
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import (
    AnyRecord,
    MetricsRecord,
    NoticeRecord,
    PhaseRecord,
    PlanRecord,
)
from sae_engine.text.stdlib import EMBEDDED_CORPUS
from sae_engine.training.checkpoint import (
    CheckpointWriter,
    TrainState,
    device_kind,
    load_checkpoint,
)
from sae_engine.training.clock import Clock
from sae_engine.training.heldout import Ending, HeldoutWork, SharedHeldout
from sae_engine.training.steps import Steps, new_trainer
from sae_engine.training.stopping import StopSwitch
from sae_engine.training.trackers import open_trackers


class NonFiniteLossError(UserError):
    """The loss or the weights became NaN or infinite; the SAE saved last is kept."""


class TrainingRun:
    """One run's SAE, its trainer, and the numbers it carries from step to step."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        feed: Feed,
        heldout: SharedHeldout,
        stop: StopSwitch,
        step: int = 0,
    ) -> None:
        """`step` is that of the checkpoint to resume from; 0 for a new run."""
        self.config = config
        self.folder = folder
        self.stop = stop
        self.hook = feed.hook_of(config)
        self._hook_name = feed.hook_name(self.hook)
        self._prepends_bos = feed.prepends_bos
        d_in = feed.d_in(self.hook)
        self.trainer = new_trainer(config, d_in, _budget(config, feed), feed.device)
        self._ordinary = OutlierFilter(config.data.max_norm_multiple)
        self.steps = Steps(self.trainer, self._ordinary)
        model = feed.load_model()
        self.plan = PlanRecord(
            total_steps=self.trainer.budget.total_steps,
            total_tokens=self.trainer.budget.total_tokens,
            d_in=d_in,
            d_sae=self.trainer.sae.d_sae,
            k=self.trainer.sae.k,
            lr=self.trainer.peak_lr,
            device=str(feed.device),
            dtype=None if model is None else model.dtype_name,
            readers=feed.num_readers,
            documents=feed.division,
            dead_feature_threshold=self.trainer.dead_threshold,
        )
        self._fingerprint = _fingerprint(config, feed)
        self._contents = feed.contents
        self._model = None if model is None else ModelIdentity.of(model)
        self._heldout = HeldoutWork(config, folder, heldout, stop, self._ending)
        self._trackers = open_trackers(config, folder, step)
        self._announced_outliers = False
        self._best_fvu = math.inf
        self._seconds_before = 0.0
        self._began = time.perf_counter()
        self._feed = feed
        self._checkpoints = CheckpointWriter(folder)
        self._overlap = ""
        """What the checkpoint knows of the overlap of training and held-out text."""
        self._measured: dict[str, float] = {}
        """Everything measured at the current step."""

    @property
    def is_done(self) -> bool:
        return self.trainer.steps_done >= self.trainer.budget.total_steps

    @property
    def tokens(self) -> int:
        return self._tokens(self.trainer.steps_done)

    def begin(self, first_window: Float[Tensor, "n d_in"]) -> Iterator[AnyRecord]:
        """Start a new run: set the outlier limit, the input scale and the first weights from the
        first activations. Yields a notice if they are all the same.
        """
        if self._model is not None:
            self._model.save(self.folder.model)
        typical = self._ordinary.begin_(first_window)
        self._heldout.norm_limit = self._ordinary.limit
        self.trainer.fit_input_(typical, self.config.seed)
        if self.trainer.variance <= ROUNDING * self.plan.d_in:
            yield NoticeRecord(
                level="warning",
                message=f"The activations at {self._hook_name} are the same at every token, so "
                "there is nothing to learn; choose another model.layer or model.site.",
            )

    def restore(self) -> tuple[StreamState, list[str]]:
        """Load the checkpoint. Return the stream's position, and a sentence each if the newest
        checkpoint could not be read and if this is another kind of device.
        """
        trainer = self.trainer
        state, damage = load_checkpoint(self.folder, trainer)
        if state.fingerprint != self._fingerprint:
            raise UserError(
                "The data, the tokenizer or the SAE's shape is not what this run began with, so "
                "it cannot be resumed; start a new run."
            )
        _require_same_contents(state.contents, self._contents)
        if self._model is not None:
            require_same_model(self._model, self.folder.model)
        trainer.scale, trainer.variance = state.scale, state.variance
        trainer.steps_done = state.step
        self._ordinary.restore_(state.median_norm, state.outlier_tokens)
        self._announced_outliers = state.outlier_tokens > 0
        self._heldout.norm_limit = self._ordinary.limit
        self._best_fvu, self._seconds_before = state.best_fvu, state.seconds
        self._overlap = state.overlap
        moved = _moved(state.device, device_kind(self._feed.device))
        return state.stream, [sentence for sentence in (damage, moved) if sentence is not None]

    def announce_heldout(self) -> Iterator[AnyRecord]:
        """Say what is missing from the held-out text; reads it unless another run has."""
        yield from self._heldout.open()
        if self._feed.overlap is not None:
            self._feed.overlap.restore_(self._overlap)

    def step(
        self, batch: Float[Tensor, "n d_in"], stream: ActivationStream, clock: Clock
    ) -> Iterator[AnyRecord]:
        """Take one optimizer step and do what is due after it.

        Raises `Halted` if the run is asked to end meanwhile, and `NonFiniteLossError`.
        """
        config, trainer = self.config.train, self.trainer
        self._began = clock.began
        step = trainer.steps_done + 1
        is_last = step == trainer.budget.total_steps
        is_logged = self.steps.is_logged(step)
        # What is due at the last step is done once, by `finish`.
        looks = not is_last and _due(
            step, config.eval_every, config.ce_every, config.snapshot_every
        )
        saves = not is_last and _due(step, config.save_every)
        is_read = is_logged or looks or saves
        with clock.sae_step():
            self.steps.take(batch, is_read=is_read)
        self._measured = {}
        if not is_read:
            return
        with clock.pause():
            if is_logged:
                values = self.steps.metrics()
                yield self._metrics(values | clock.read())
                yield from self._outlier_notice()
                if not math.isfinite(values["loss"]):
                    raise self._non_finite(f"The loss became {values['loss']}")
            if looks:
                yield from self._evaluate_and_index(step)
            if saves:
                # Consumers have stored the records of this step before its checkpoint exists, so
                # a run that resumes from it leaves no gap.
                yield PhaseRecord(phase="saving a checkpoint")
                self._save(stream)
                yield PhaseRecord(phase="training")

    def _outlier_notice(self) -> Iterator[NoticeRecord]:
        """Says once that tokens are left out."""
        num_outliers = self._ordinary.num_tokens
        if num_outliers and not self._announced_outliers:
            self._announced_outliers = True
            yield NoticeRecord(
                level="info",
                message=f"{num_outliers:,} of the first {self.tokens:,} training tokens are left "
                f"out of training, and such tokens are left out of metrics and features too: the "
                f"norm of their activation exceeds {self._ordinary.multiple:g} times the median "
                "norm (data.max_norm_multiple), as at attention sinks.",
            )

    def _evaluate_and_index(self, step: int) -> Iterator[AnyRecord]:
        """Evaluations and the feature snapshot due while the run trains."""
        config = self.config.train
        yield from self._heldout.open()
        if _due(step, config.eval_every):
            yield PhaseRecord(phase="evaluating")
            yield self._metrics(self._evaluate())
        if _due(step, config.ce_every):
            yield from self._cross_entropy()
        if _due(step, config.snapshot_every):
            yield PhaseRecord(phase="indexing features")
            yield from self._heldout.index(self._folded(), step, final=False)
        yield PhaseRecord(phase="training")

    def finish(self, stream: ActivationStream) -> Iterator[AnyRecord]:
        """Publish the SAE, evaluate it and build its features, however the training ended."""
        yield PhaseRecord(phase="saving a checkpoint")
        self._save(stream)
        self._checkpoints.wait()
        yield from self._heldout.open()
        yield PhaseRecord(phase="evaluating")
        values = self._evaluate()
        if self.config.data.heldout_tokens != self.config.train.eval_tokens:
            values = self._heldout.reconstruction(self._folded(), self.config.data.heldout_tokens)
        yield self._metrics(values)
        yield PhaseRecord(phase="building the feature index")
        yield from self._heldout.index(self._folded(), self.trainer.steps_done, final=True)
        yield from self._cross_entropy()

    def _cross_entropy(self) -> Iterator[AnyRecord]:
        values = yield from self._heldout.cross_entropy(self._folded())
        if values:
            yield self._metrics(values)

    def tracked(self, record: AnyRecord) -> AnyRecord:
        """Pass a record to TensorBoard and Weights & Biases, if the run uses them; return it."""
        if isinstance(record, MetricsRecord):
            for tracker in self._trackers:
                tracker.log(record)
        return record

    def close(self) -> None:
        self._checkpoints.close()
        for tracker in self._trackers:
            tracker.close()

    def _metrics(self, values: dict[str, float]) -> MetricsRecord:
        """A record of everything measured at this step so far; a later one of the same step
        holds more.
        """
        self._measured |= values
        step = self.trainer.steps_done
        return MetricsRecord(
            step=step, tokens=self._tokens(step), time=self._seconds(), values=dict(self._measured)
        )

    def _evaluate(self) -> dict[str, float]:
        """Held-out metrics on the tokens on which all SAEs of the run are compared."""
        sae = self._folded()
        values = self._heldout.reconstruction(sae, self.config.train.eval_tokens)
        if values["eval_fvu"] < self._best_fvu:
            self._best_fvu = values["eval_fvu"]
            self._publish(sae, self.folder.best)
        return values

    def _save(self, stream: ActivationStream) -> None:
        """Publish the current SAE, and begin to write a checkpoint to resume from."""
        trainer = self.trainer
        self._publish(self._folded(), self.folder)
        state = TrainState(
            step=trainer.steps_done,
            tokens=self._tokens(trainer.steps_done),
            seconds=self._seconds(),
            scale=trainer.scale,
            variance=trainer.variance,
            median_norm=self._ordinary.median_norm,
            outlier_tokens=self._ordinary.num_tokens,
            best_fvu=self._best_fvu,
            stream=stream.state,
            fingerprint=self._fingerprint,
            contents=tuple(contents.hash for contents in self._contents),
            overlap="" if self._feed.overlap is None else self._feed.overlap.state(),
            device=device_kind(self._feed.device),
        )
        self._checkpoints.save(trainer, state)

    def _publish(self, sae: TopKSAE, folder: RunFolder) -> None:
        publish_sae(
            sae,
            folder,
            self.config,
            self._hook_name,
            prepends_bos=self._prepends_bos,
            step=self.trainer.steps_done,
        )

    def _folded(self) -> TopKSAE:
        """The current SAE on raw activations, for everything that is published.

        Raises `NonFiniteLossError` unless all its weights are finite; the loss is read only at
        logged steps, which may be too late.
        """
        self.steps.fetch()
        sae = self.trainer.sae.folded(self.trainer.scale)
        if not sae.is_finite():
            raise self._non_finite("The SAE's weights became NaN or infinite")
        return sae

    def _ending(self) -> Ending | None:
        """What is to be indexed if the run is about to end, unless its weights are not finite."""
        if not self.trainer.steps_done or not (self.is_done or self.stop.is_on):
            return None
        try:
            return Ending(self._folded(), self.trainer.steps_done)
        except NonFiniteLossError:
            return None

    def _non_finite(self, what: str) -> NonFiniteLossError:
        return NonFiniteLossError(
            f"{what} at step {self.trainer.steps_done}; lower train.lr (its peak was "
            f"{self.trainer.peak_lr:.2g}). The SAE and features saved last are kept."
        )

    def _tokens(self, step: int) -> int:
        return step * self.config.train.batch_size_tokens

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._began


def _require_same_contents(before: Sequence[str], now: Sequence[Contents]) -> None:
    """Raise `UserError` if data have changed since the checkpoint, unless an earlier version wrote
    it, which kept no hashes.
    """
    for its_hash, contents in zip(before, now, strict=False):
        if its_hash and contents.hash and its_hash != contents.hash:
            is_embedded = contents.name == EMBEDDED_CORPUS
            remedy = "use the same version of Python" if is_embedded else "restore its files"
            raise UserError(
                f"'{contents.name}' has changed since this run began, so the run cannot be "
                f"resumed; {remedy}, or start a new run."
            )


def _moved(before: str, now: str) -> str | None:
    """A sentence if a run continues on another kind of device; None if that is not known."""
    if before in ("", now):
        return None
    return (
        f"The run was trained on {before} so far and continues on {now}, which rounds differently; "
        "from here on its numbers differ slightly from those of a run that never moved."
    )


def _due(step: int, *intervals: int | None) -> bool:
    return any(interval is not None and step % interval == 0 for interval in intervals)


def _budget(config: RunConfig, feed: Feed) -> Budget:
    """Steps and tokens of the whole run; raises `ConfigError` if they do not fill one batch."""
    batch = config.train.batch_size_tokens
    tokens = config.train.total_tokens
    if config.train.num_epochs is not None:
        tokens = config.train.num_epochs * feed.num_train_tokens
    if tokens is None:
        raise ConfigError.of("train.total_tokens", "Give train.total_tokens or train.num_epochs.")
    if tokens < batch:
        raise ConfigError.of(
            "train.batch_size_tokens",
            f"{tokens:,} training tokens do not fill one batch of {batch:,}.",
        )
    return Budget(tokens // batch, tokens // batch * batch)


def _fingerprint(config: RunConfig, feed: Feed) -> str:
    """Identifies what a checkpoint depends on: the order of the data, the hook point and the SAE's
    shape.
    """
    same = config.model_dump(
        mode="json",
        include={
            "model": {"name", "layer", "site", "hook_point", "hook_io"},
            "sae": True,
            "train": {"batch_size_tokens"},
        },
    )
    described = feed.fingerprint + json.dumps(same, sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()
