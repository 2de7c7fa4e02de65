"""One run while it trains: its steps, and what it does with itself between them.

Driven by `train`, which feeds it batches, alone or beside others on the same pass.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor

from sae_engine.activations.feed import Feed
from sae_engine.activations.stream import ActivationStream, StreamState
from sae_engine.errors import ConfigError, UserError
from sae_engine.files import RunFolder, published_file
from sae_engine.sae.autoencoders import SAE, TopKSAE, write_sae_config
from sae_engine.sae.trainer import Budget, SAETrainer
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import AnyRecord, MetricsRecord, PhaseRecord, PlanRecord, StopRequest
from sae_engine.training.checkpoint import TrainState, load_checkpoint, save_checkpoint
from sae_engine.training.heldout import HeldoutWork, SharedHeldout
from sae_engine.training.trackers import open_trackers


class NonFiniteLossError(UserError):
    """The loss became NaN or infinite; the last good SAE is kept."""


class Halted(Exception):  # noqa: N818 - it is a way out, not an error
    """Unwinds evaluation, extraction and index building when a run is asked to end."""


class StopSwitch:
    """Asks whether a run should end, and raises `Halted` where it is called inside long work."""

    def __init__(self, should_stop: Callable[[], StopRequest]) -> None:
        self._should_stop = should_stop
        self.finishing = False
        """The run ends anyway: only a forced stop interrupts it now."""

    @property
    def is_on(self) -> bool:
        request = self._should_stop()
        return request is StopRequest.FORCE or (request is StopRequest.STOP and not self.finishing)

    def __call__(self) -> None:
        if self.is_on:
            raise Halted


class Clock:
    """Where the time of a pass goes, since its start; what happens in `pause` does not count."""

    def __init__(self, batch_size_tokens: int) -> None:
        self.began = time.perf_counter()
        self._batch_size = batch_size_tokens
        self._sae_seconds = 0.0
        self._paused_seconds = 0.0
        self.steps = 0

    @contextmanager
    def sae_step(self) -> Generator[None]:
        began = time.perf_counter()
        yield
        self._sae_seconds += time.perf_counter() - began

    @contextmanager
    def pause(self) -> Generator[None]:
        began = time.perf_counter()
        yield
        self._paused_seconds += time.perf_counter() - began

    def values(self, stream: ActivationStream) -> dict[str, float]:
        """Throughput of each run on the pass, and the shares of model, shuffling and all SAEs."""
        seconds = time.perf_counter() - self.began - self._paused_seconds
        lm_share = stream.source.model_seconds / seconds
        sae_share = self._sae_seconds / seconds
        return {
            "tokens_per_second": self.steps * self._batch_size / seconds,
            "lm_share": lm_share,
            "sae_share": sae_share,
            "buffer_share": 1 - lm_share - sae_share,
        }


class Run:
    """One run's SAE, its trainer, and the numbers that it carries from step to step."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        feed: Feed,
        heldout: SharedHeldout,
        stop: StopSwitch,
    ) -> None:
        self.config = config
        self.folder = folder
        self.stop = stop
        self.hook = feed.hook_of(config)
        self._hook_name = feed.hook_name(self.hook)
        d_in = feed.d_in(self.hook)
        d_sae = config.sae.num_latents(d_in)
        sae = TopKSAE(d_in, d_sae, config.sae.k, tied=config.sae.tied_weights).to(feed.device)
        self.trainer = SAETrainer(sae, config.sae, config.train, _budget(config, feed))
        self.plan = PlanRecord(
            total_steps=self.trainer.budget.total_steps,
            total_tokens=self.trainer.budget.total_tokens,
            d_in=d_in,
            d_sae=d_sae,
            lr=self.trainer.peak_lr,
            device=str(feed.device),
        )
        self._fingerprint = _fingerprint(config, feed)
        self._heldout = HeldoutWork(config, folder, heldout, stop)
        self._trackers = open_trackers(config, folder)
        self._best_fvu = math.inf
        self._seconds_before = 0.0
        self._began = time.perf_counter()
        self._measured: dict[str, float] = {}
        """All that has been measured at the present step."""

    @property
    def is_done(self) -> bool:
        return self.trainer.steps_done >= self.trainer.budget.total_steps

    @property
    def tokens(self) -> int:
        return self._tokens(self.trainer.steps_done)

    def begin(self, first_window: Float[Tensor, "n d_in"]) -> None:
        """Start from nothing: scale and first weights come from the first activations."""
        self.trainer.fit_input_(first_window, self.config.seed)

    def restore(self) -> tuple[StreamState, str | None]:
        """Take everything from the checkpoint; return where the stream stood, and in a sentence why
        that is not the newest checkpoint if it is not.
        """
        trainer = self.trainer
        state, notice = load_checkpoint(self.folder, trainer)
        if state.fingerprint != self._fingerprint:
            raise UserError(
                "The text, the tokenizer or the SAE's shape is not what this run began with, so "
                "it cannot be resumed; start a new run."
            )
        trainer.scale, trainer.variance, trainer.steps_done = (
            state.scale,
            state.variance,
            state.step,
        )
        self._best_fvu, self._seconds_before = state.best_fvu, state.seconds
        return state.stream, notice

    def step(
        self, batch: Float[Tensor, "n d_in"], stream: ActivationStream, clock: Clock
    ) -> Iterator[AnyRecord]:
        """One optimizer step and whatever is due after it; that raises `Halted` when the run is
        asked to end.
        """
        config, trainer = self.config.train, self.trainer
        self._began = clock.began
        lr, step = trainer.lr, trainer.steps_done + 1
        is_last = step == trainer.budget.total_steps
        is_logged = step == 1 or is_last or step % config.log_every == 0
        with clock.sae_step():
            result = trainer.step(batch, measured=is_logged)
        self._measured = {}
        with clock.pause():
            if is_logged:
                values = {n: v.item() for n, v in result.metrics()._asdict().items()}
                values |= {"lr": lr, "frac_dead": trainer.frac_dead}
                yield self._metrics(values | clock.values(stream))
                self._refuse_nonfinite()
            if not is_last:  # what the last step asks for is done once, by `finish`
                yield from self._look_at_itself(step)
                if _due(step, config.save_every):
                    # Whoever stores the records has those of this step before its checkpoint is
                    # there: a run that resumes from it leaves no gap.
                    yield PhaseRecord(phase="saving a checkpoint")
                    self._save(stream)
                    yield PhaseRecord(phase="training")

    def _look_at_itself(self, step: int) -> Iterator[AnyRecord]:
        """Held-out evaluation and feature snapshots while the run trains."""
        config = self.config.train
        if not _due(step, config.eval_every, config.ce_every, config.snapshot_every):
            return
        yield from self._heldout.open()
        if _due(step, config.eval_every):
            yield PhaseRecord(phase="evaluating")
            yield self._metrics(self._evaluate(config.eval_tokens))
        if _due(step, config.ce_every):
            yield from self._cross_entropy()
        if _due(step, config.snapshot_every):
            yield PhaseRecord(phase="indexing features")
            yield from self._heldout.index(self._folded(), step, final=False)
        yield PhaseRecord(phase="training")

    def finish(self, stream: ActivationStream) -> Iterator[AnyRecord]:
        """Whatever ended the training: publish the SAE, evaluate it and build its features."""
        yield PhaseRecord(phase="saving a checkpoint")
        self._save(stream)
        yield from self._heldout.open()
        yield PhaseRecord(phase="evaluating")
        yield self._metrics(self._evaluate(self.config.data.heldout_tokens))
        yield PhaseRecord(phase="building the feature index")
        yield from self._heldout.index(self._folded(), self.trainer.steps_done, final=True)
        yield from self._cross_entropy()

    def _cross_entropy(self) -> Iterator[AnyRecord]:
        yield PhaseRecord(phase="measuring the cross-entropy delta")
        for values in self._heldout.cross_entropy(self._folded()):
            yield self._metrics(values)

    def tracked(self, record: AnyRecord) -> AnyRecord:
        """Show a record to TensorBoard and Weights & Biases, if the run has them."""
        if isinstance(record, MetricsRecord):
            self._trackers.log(record)
        return record

    def close(self) -> None:
        self._trackers.close()

    def _metrics(self, values: dict[str, float]) -> MetricsRecord:
        """A record of everything measured at this step so far; a later one of the same step
        holds more.
        """
        self._measured |= values
        step = self.trainer.steps_done
        return MetricsRecord(
            step=step, tokens=self._tokens(step), time=self._seconds(), values=dict(self._measured)
        )

    def _evaluate(self, num_tokens: int) -> dict[str, float]:
        sae = self._folded()
        values = self._heldout.reconstruction(sae, num_tokens)
        if values["eval_fvu"] < self._best_fvu:
            self._best_fvu = values["eval_fvu"]
            self._publish(sae, self.folder.best)
        return values

    def _refuse_nonfinite(self) -> None:
        loss = self._measured["loss"]
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"The loss became {loss} at step {self.trainer.steps_done}; lower train.lr (its "
                f"peak was "
                f"{self.trainer.peak_lr:.2g}). The last SAE and features that were saved are kept."
            )

    def _save(self, stream: ActivationStream) -> None:
        """Publish the SAE as it is now, and the state from which the run can be resumed."""
        trainer = self.trainer
        self._publish(self._folded(), self.folder)
        state = TrainState(
            step=trainer.steps_done,
            tokens=self._tokens(trainer.steps_done),
            seconds=self._seconds(),
            scale=trainer.scale,
            variance=trainer.variance,
            best_fvu=self._best_fvu,
            stream=stream.state,
            fingerprint=self._fingerprint,
        )
        save_checkpoint(self.folder, trainer, state)

    def _publish(self, sae: SAE, folder: RunFolder) -> None:
        publish_sae(sae, folder, self.config, self._hook_name)

    def _folded(self) -> TopKSAE:
        return self.trainer.sae.folded(self.trainer.scale)

    def _tokens(self, step: int) -> int:
        return step * self.config.train.batch_size_tokens

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._began


def publish_sae(sae: SAE, folder: RunFolder, config: RunConfig, hook_name: str) -> None:
    """Write `sae.safetensors` and the `cfg.json` that says where its inputs come from."""
    with published_file(folder.sae) as path:
        sae.save(path)
    with published_file(folder.sae_config) as path:
        write_sae_config(
            path,
            sae,
            model_name=config.model.name,
            hook_name=hook_name,
            dataset=config.data.dataset,
            ctx_len=config.data.ctx_len,
        )


def _due(step: int, *intervals: int | None) -> bool:
    return any(interval is not None and step % interval == 0 for interval in intervals)


def _budget(config: RunConfig, feed: Feed) -> Budget:
    """Steps and tokens of the whole run; raises `ConfigError` if there is not one batch."""
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
    """Changes with the data, the model's place and the SAE's shape: what a checkpoint depends
    on.
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
