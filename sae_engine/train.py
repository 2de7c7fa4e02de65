"""A training run from configuration to browsable features, as a generator of records.

`train` opens the language model, streams its activations through an SAE, evaluates, checkpoints and
builds feature indexes, all into the run's folder, and yields what happens. Who stores or shows it
is not its business: the job process of the backend, the command line and notebooks all just
iterate.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager

import yaml

from sae_engine.activations import BEGINNING, ActivationStream, StreamState
from sae_engine.checkpoint import TrainState, load_checkpoint, save_checkpoint
from sae_engine.corpus import Packing, count_tokens, training_rows
from sae_engine.errors import ConfigError, UserError
from sae_engine.files import RunFolder, published_file
from sae_engine.heldout import HeldoutWork
from sae_engine.language_model import LanguageModel
from sae_engine.preflight import check_config
from sae_engine.sae import TopKSAE, write_sae_config
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import (
    AnyRecord,
    EndRecord,
    MetricsRecord,
    PhaseRecord,
    PlanRecord,
    StopRequest,
)
from sae_engine.trackers import open_trackers
from sae_engine.trainer import Budget, SAETrainer, StepResult


class NonFiniteLossError(UserError):
    """The loss became NaN or infinite; the last good SAE is kept."""


class _Halted(Exception):  # noqa: N818 - it is a way out, not an error
    """Unwinds evaluation, extraction and index building when the run is asked to end."""


class _StopSwitch:
    """Asks whether the run should end, and raises where it is called inside long work."""

    def __init__(self, should_stop: Callable[[], StopRequest]) -> None:
        self._should_stop = should_stop
        self.finishing = False
        """The run ends anyway: only a forced stop interrupts it now."""

    def __call__(self) -> None:
        request = self._should_stop()
        if request is StopRequest.FORCE or (request is StopRequest.STOP and not self.finishing):
            raise _Halted


def train(
    config: RunConfig,
    folder: RunFolder,
    *,
    should_stop: Callable[[], StopRequest] = lambda: StopRequest.NONE,
    resume: bool = False,
) -> Iterator[AnyRecord]:
    """Train one SAE as `config` says and leave everything in `folder`; see the module's docstring.

    `should_stop` is polled at least once per step and inside long work. With `resume` the run goes
    on from its checkpoint, exactly as if it had not stopped. Raises `UserError` in one sentence
    when the run cannot go on.
    """
    check_config(config)
    folder.path.mkdir(parents=True, exist_ok=True)
    with published_file(folder.config) as path:
        path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), "utf-8")
    stop = _StopSwitch(should_stop)

    yield PhaseRecord(phase="loading the language model")
    model = LanguageModel.load(config.model)
    packing = Packing(model.tokenizer, config.data.ctx_len, model.bos_id, model.eos_id)
    if config.train.num_epochs is not None:
        yield PhaseRecord(phase="counting the training text")
    budget = _budget(config, packing)
    d_sae = config.sae.num_latents(model.d_in)
    sae = TopKSAE(model.d_in, d_sae, config.sae.k, tied=config.sae.tied_weights).to(model.device)
    trainer = SAETrainer(sae, config.sae, config.train, budget)
    yield PlanRecord(
        total_steps=budget.total_steps,
        total_tokens=budget.total_tokens,
        d_in=model.d_in,
        d_sae=d_sae,
        lr=trainer.peak_lr,
        device=str(model.device),
    )
    with (
        closing(HeldoutWork(config, folder, model, packing, stop)) as heldout,
        closing(open_trackers(config, folder)) as trackers,
    ):
        run = _Run(config, folder, model, packing, trainer, heldout, stop)
        for record in run.records(resume=resume):
            if isinstance(record, MetricsRecord):
                trackers.log(record)
            yield record


class _Run:
    """One start of a run: the loop, and the numbers that it carries from step to step."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        model: LanguageModel,
        packing: Packing,
        trainer: SAETrainer,
        heldout: HeldoutWork,
        stop: _StopSwitch,
    ) -> None:
        self.config = config
        self.folder = folder
        self.model = model
        self.packing = packing
        self.trainer = trainer
        self.heldout = heldout
        self.stop = stop
        self.fingerprint = _fingerprint(config, packing)
        self.stream: ActivationStream | None = None
        self.best_fvu = math.inf
        self.seconds_before = 0.0
        self.began = time.perf_counter()
        self.measured: dict[str, float] = {}
        """All that has been measured at the present step."""

    def records(self, *, resume: bool) -> Iterator[AnyRecord]:
        try:
            yield from self._steps(resume=resume)
            reason = "finished"
        except _Halted:
            reason = "stopped"
        self.stop.finishing = True
        try:
            if self.stream is not None and self.trainer.steps_done > 0:
                yield from self._finish(self.stream)
        except _Halted:
            reason = "stopped"
        step = self.trainer.steps_done
        yield EndRecord(reason=reason, step=step, tokens=self._tokens(step))

    def _steps(self, *, resume: bool) -> Iterator[AnyRecord]:
        """The training loop."""
        config, trainer = self.config.train, self.trainer
        position = self._resume() if resume and self.folder.checkpoint.exists() else None
        yield PhaseRecord(phase="reading the first activations")
        self.began = time.perf_counter()
        self.stream = stream = ActivationStream(
            self.model,
            lambda cursor: training_rows(self.config.data, self.packing, cursor=cursor),
            batch_size=config.batch_size_tokens,
            seed=self.config.data.seed,
            state=position or BEGINNING,
            check_stop=self.stop,
        )
        if position is None:
            trainer.fit_input_(stream.first_window, self.config.seed)
        clock = _Clock(self.began, config.batch_size_tokens)

        yield PhaseRecord(phase="training")
        while trainer.steps_done < trainer.budget.total_steps:
            self.stop()
            batch = next(stream)
            lr = trainer.lr
            with clock.sae_step():
                result = trainer.step(batch)
            step = trainer.steps_done

            self.measured = {}
            last = step == trainer.budget.total_steps
            with clock.pause():
                if step == 1 or last or step % config.log_every == 0:
                    yield self._metrics(_train_values(result, trainer, lr) | clock.values(stream))
                    self._refuse_nonfinite()
                if not last:  # what the last step asks for is done once, by `_finish`
                    yield from self._look_at_itself(step)
                    if _due(step, config.save_every):
                        self._save(stream)

    def _look_at_itself(self, step: int) -> Iterator[AnyRecord]:
        """Held-out evaluation and feature snapshots while the run trains."""
        config = self.config.train
        if not _due(step, config.eval_every, config.ce_every, config.snapshot_every):
            return
        yield from self.heldout.open()
        if _due(step, config.eval_every):
            yield PhaseRecord(phase="evaluating")
            yield self._metrics(self._evaluate(config.eval_tokens))
        if _due(step, config.ce_every):
            yield PhaseRecord(phase="measuring the cross-entropy delta")
            yield self._metrics(self.heldout.cross_entropy(self._folded()))
        if _due(step, config.snapshot_every):
            yield PhaseRecord(phase="indexing features")
            yield self.heldout.index(self._folded(), step, final=False)
        yield PhaseRecord(phase="training")

    def _finish(self, stream: ActivationStream) -> Iterator[AnyRecord]:
        """Whatever ended the training: publish the SAE, evaluate it and build its features."""
        self._save(stream)
        yield from self.heldout.open()
        yield PhaseRecord(phase="evaluating")
        yield self._metrics(self._evaluate(self.config.data.heldout_tokens))
        yield PhaseRecord(phase="building the feature index")
        yield self.heldout.index(self._folded(), self.trainer.steps_done, final=True)
        yield PhaseRecord(phase="measuring the cross-entropy delta")
        yield self._metrics(self.heldout.cross_entropy(self._folded()))

    def _metrics(self, values: dict[str, float]) -> MetricsRecord:
        """A record of everything measured at this step so far; a later one of the same step
        holds more.
        """
        self.measured |= values
        step = self.trainer.steps_done
        return MetricsRecord(
            step=step, tokens=self._tokens(step), time=self._seconds(), values=dict(self.measured)
        )

    def _evaluate(self, num_tokens: int) -> dict[str, float]:
        sae = self._folded()
        values = self.heldout.reconstruction(sae, num_tokens)
        if values["eval_fvu"] < self.best_fvu:
            self.best_fvu = values["eval_fvu"]
            self._publish(sae, self.folder.best)
        return values

    def _refuse_nonfinite(self) -> None:
        loss = self.measured["loss"]
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
            best_fvu=self.best_fvu,
            stream=stream.state,
            fingerprint=self.fingerprint,
        )
        save_checkpoint(self.folder, trainer, state)

    def _resume(self) -> StreamState:
        """Take everything from the checkpoint; return where the stream stood."""
        trainer = self.trainer
        state = load_checkpoint(self.folder, trainer)
        if state.fingerprint != self.fingerprint:
            raise UserError(
                "The text, the tokenizer or the SAE's shape is not what this run began with, so "
                "it cannot be "
                "resumed; start a new run."
            )
        trainer.scale, trainer.variance, trainer.steps_done = (
            state.scale,
            state.variance,
            state.step,
        )
        self.best_fvu, self.seconds_before = state.best_fvu, state.seconds
        return state.stream

    def _publish(self, sae: TopKSAE, folder: RunFolder) -> None:
        with published_file(folder.sae) as path:
            sae.save(path)
        with published_file(folder.sae_config) as path:
            write_sae_config(
                path,
                sae,
                model_name=self.config.model.name,
                hook_name=self.model.hook_name,
                dataset=self.config.data.dataset,
                ctx_len=self.config.data.ctx_len,
            )

    def _folded(self) -> TopKSAE:
        return self.trainer.sae.folded(self.trainer.scale)

    def _tokens(self, step: int) -> int:
        return step * self.config.train.batch_size_tokens

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.began


class _Clock:
    """Where the training time goes, since the last start; what happens in `pause` does not
    count.
    """

    def __init__(self, began: float, batch_size_tokens: int) -> None:
        self._began = began
        self._batch_size = batch_size_tokens
        self._steps = 0
        self._sae_seconds = 0.0
        self._paused_seconds = 0.0

    @contextmanager
    def sae_step(self) -> Generator[None]:
        began = time.perf_counter()
        yield
        self._sae_seconds += time.perf_counter() - began
        self._steps += 1

    @contextmanager
    def pause(self) -> Generator[None]:
        began = time.perf_counter()
        yield
        self._paused_seconds += time.perf_counter() - began

    def values(self, stream: ActivationStream) -> dict[str, float]:
        seconds = time.perf_counter() - self._began - self._paused_seconds
        lm_share, sae_share = stream.model_seconds / seconds, self._sae_seconds / seconds
        return {
            "tokens_per_second": self._steps * self._batch_size / seconds,
            "lm_share": lm_share,
            "sae_share": sae_share,
            "buffer_share": 1 - lm_share - sae_share,
        }


def _train_values(result: StepResult, trainer: SAETrainer, lr: float) -> dict[str, float]:
    measured = {name: value.item() for name, value in result.metrics()._asdict().items()}
    return measured | {"lr": lr, "frac_dead": trainer.frac_dead}


def _due(step: int, *intervals: int | None) -> bool:
    return any(interval is not None and step % interval == 0 for interval in intervals)


def _budget(config: RunConfig, packing: Packing) -> Budget:
    """Steps and tokens of the whole run; raises `ConfigError` if there is not one batch."""
    batch = config.train.batch_size_tokens
    tokens = config.train.total_tokens
    if config.train.num_epochs is not None:
        tokens = config.train.num_epochs * count_tokens(config.data, packing)
    if tokens is None:
        raise ConfigError.of("train.total_tokens", "Give train.total_tokens or train.num_epochs.")
    if tokens < batch:
        raise ConfigError.of(
            "train.batch_size_tokens",
            f"{tokens:,} training tokens do not fill one batch of {batch:,}.",
        )
    return Budget(tokens // batch, tokens // batch * batch)


def _fingerprint(config: RunConfig, packing: Packing) -> str:
    """Changes with the text, the tokenizer, the model's place and the SAE's shape: what a
    checkpoint depends on.
    """
    digest = hashlib.sha256()
    digest.update(packing.tokenizer.to_str().encode())
    digest.update(training_rows(config.data, packing).take(4).tobytes())
    same = config.model_dump(
        mode="json",
        include={
            "data": {"dataset", "subset", "split", "text_column", "ctx_len", "seed", "num_samples"},
            "model": {"name", "layer", "site", "hook_point", "hook_io"},
            "sae": True,
            "train": {"batch_size_tokens"},
        },
    )
    digest.update(json.dumps(same, sort_keys=True).encode())
    return digest.hexdigest()
