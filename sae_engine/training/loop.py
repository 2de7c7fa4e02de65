"""Training, from configurations to browsable features, as a generator of records.

`train_together` opens the feed, streams activations through the SAEs of the runs, lets each run
evaluate, save checkpoints and build feature indexes in its own folder, and yields records of what
happens. The backend's job process, the command line and notebooks iterate over it and store or
show the records. `train` does the same for one run.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import Literal

from torch import Tensor

from sae_engine.activations.feed import Feed, new_notices, open_feed
from sae_engine.activations.processes import LostHelperError
from sae_engine.activations.readers import reader_devices
from sae_engine.activations.stream import BEGINNING, ActivationStream, StreamState
from sae_engine.errors import UserError
from sae_engine.files import RunFolder
from sae_engine.preflight import check_config
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import (
    AnyRecord,
    EndRecord,
    FailureRecord,
    NoticeRecord,
    PhaseRecord,
    StartRecord,
    StopRequest,
)
from sae_engine.training.clock import Clock, open_timer
from sae_engine.training.heldout import SharedHeldout
from sae_engine.training.member import Member, never
from sae_engine.training.position import saved_position
from sae_engine.training.pretrained import inspect_pretrained
from sae_engine.training.rehearsal import REHEARSING, rehearse
from sae_engine.training.run import NonFiniteLossError, TrainingRun
from sae_engine.training.spread import Spread
from sae_engine.training.stopping import Halted, StopSwitch


def train(
    config: RunConfig,
    folder: RunFolder,
    *,
    should_stop: Callable[[], StopRequest] = never,
    resume: bool = False,
) -> Iterator[AnyRecord]:
    """Train one SAE as configured and write everything to `folder`; see `Member`.

    Raises `UserError` when the run cannot continue.
    """
    for _, record in train_together([Member(config, folder, should_stop, resume)]):
        if isinstance(record, FailureRecord):
            kind = NonFiniteLossError if record.error_type == "NonFiniteLossError" else UserError
            raise kind(record.message)
        yield record


def train_together(members: Sequence[Member]) -> Generator[tuple[int, AnyRecord]]:
    """Train several SAEs on one pass of the language model; yield (index of the member, record).

    All members must have the same `RunConfig.pass_key`, and resumed members must have stopped at
    the same step. Each member's last record is an `EndRecord` or a `FailureRecord`; a member that
    stops or fails leaves the pass and the others continue. They are spread over the devices that
    `model.readers` gives the pass, and every SAE is bit for bit what it would be if trained alone.
    Members with `sae.pretrained` are not trained; they are handled one after the other. Raises
    `UserError` if no member can start or continue.
    """
    configs = [member.config for member in members]
    for config in configs:
        check_config(config)
    assert len({config.pass_key for config in configs}) == 1, "these runs share no pass"
    for member in members:
        member.folder.path.mkdir(parents=True, exist_ok=True)
        member.folder.remove_leftovers()
        member.save_config()

    if configs[0].sae.pretrained is not None:
        for number, member in enumerate(members):
            yield from _inspect(number, member)
        return
    with ExitStack() as stack:
        try:
            one_pass = yield from _open_pass(members, stack)
        except Halted:  # before training began, when every run was asked to stop
            for number, member in enumerate(members):
                step, tokens = _position(member)
                yield number, EndRecord(reason="stopped", step=step, tokens=tokens)
            return
        resume = [member.resume and member.folder.has_checkpoint for member in members]
        yield from one_pass.records(resume)


def _open_pass(
    members: Sequence[Member], stack: ExitStack
) -> Generator[tuple[int, AnyRecord], None, _Pass]:
    """Load what the members share, and open their runs; raises `Halted` once all must stop."""
    configs = [member.config for member in members]
    stops = [StopSwitch(member.should_stop) for member in members]

    def check_stop() -> None:
        if all(stop.is_on for stop in stops):
            raise Halted

    yield from _to_all(members, PhaseRecord(phase="loading the language model"))
    feed = stack.enter_context(closing(open_feed(configs, check_stop)))
    reported: set[str] = set()
    for notice in new_notices(feed, reported):
        yield from _to_all(members, notice)
    if (model := feed.load_model(check_stop)) is not None:
        yield from _to_all(members, PhaseRecord(phase=REHEARSING))
        rehearse(model, check_stop)
    if any(config.train.num_epochs is not None for config in configs):
        yield from _to_all(members, PhaseRecord(phase="counting the training text"))
    heldout = SharedHeldout(feed, configs, members[0].folder.index_corpus)
    stack.enter_context(closing(heldout))
    runs: list[TrainingRun] = []
    for number, (member, stop) in enumerate(zip(members, stops, strict=True)):
        step, _ = _position(member)
        run = TrainingRun(member.config, member.folder, feed, heldout, stop, step)
        runs.append(stack.enter_context(closing(run)))
        yield number, run.plan
    devices = reader_devices(configs[0].model, feed.device) if len(runs) > 1 else []
    spread = stack.enter_context(closing(Spread(devices, runs)))
    return _Pass(feed, heldout, runs, spread, reported)


def _position(member: Member) -> tuple[int, int]:
    """Steps and tokens that a member has been trained for; zeros if it is new."""
    return saved_position(member.folder) if member.resume else (0, 0)


def _inspect(number: int, member: Member) -> Iterator[tuple[int, AnyRecord]]:
    """Publish, evaluate and index a member's pretrained SAE."""
    try:
        for record in inspect_pretrained(member):
            yield number, record
    except UserError as error:
        yield number, FailureRecord(error_type=type(error).__name__, message=str(error), step=0)


class _Pass:
    """One pass of the language model and the runs still training on it."""

    def __init__(
        self,
        feed: Feed,
        heldout: SharedHeldout,
        runs: Sequence[TrainingRun],
        spread: Spread,
        reported: set[str],
    ) -> None:
        self._feed = feed
        self._spread = spread
        self._heldout = heldout
        self._reported = reported
        """Notices of the feed that all runs have received."""
        self._active = dict(enumerate(runs))
        self._batch_size = runs[0].config.train.batch_size_tokens
        self._seed = runs[0].config.data.seed
        self._stream: ActivationStream | None = None
        self._clock: Clock | None = None

    def records(self, resume: Sequence[bool]) -> Iterator[tuple[int, AnyRecord]]:
        try:
            yield from self._steps(resume)
        except Halted:  # while reading activations, once all runs were asked to end
            for number in list(self._active):
                yield from self._end(number, "stopped")

    def _steps(self, resume: Sequence[bool]) -> Iterator[tuple[int, AnyRecord]]:
        """The training loop."""
        state = yield from self._restore(resume)
        yield from self._read_heldout()
        yield from self._to_active(PhaseRecord(phase="reading the first activations"))
        clock = self._clock = Clock(self._batch_size, open_timer(self._feed.device))
        self._stream = stream = ActivationStream(
            lambda cursor: self._feed.open_source(cursor, self._halt_if_all_end, clock.lm_call),
            batch_size=self._batch_size,
            seed=self._seed,
            state=state or BEGINNING,
        )
        if state is None:
            for number, run in self._active.items():
                for notice in run.begin(stream.first_window[run.hook]):
                    yield number, notice
        for notice in new_notices(self._feed, self._reported):
            yield from self._to_active(notice)
        yield from self._to_active(PhaseRecord(phase="training"))
        while self._active:
            for number, run in list(self._active.items()):
                if run.is_done:
                    yield from self._end(number, "finished")
                elif run.stop.is_on:
                    yield from self._end(number, "stopped")
            if not self._active:
                return
            self._heldout.release()
            batch = next(stream)
            clock.steps += 1
            with clock.sae_step():
                self._spread.give(batch, self._active)
            for number, run in list(self._active.items()):
                yield from self._step(number, run, batch[run.hook])

    def _read_heldout(self) -> Iterator[tuple[int, AnyRecord]]:
        """Read the held-out text before training, so that too short a text fails at once."""
        for phase in self._heldout.opening(self._halt_if_all_end):
            yield from self._to_active(phase)
        for number, run in self._active.items():
            for record in run.announce_heldout():
                yield number, record

    def _restore(
        self, resume: Sequence[bool]
    ) -> Generator[tuple[int, AnyRecord], None, StreamState | None]:
        """Load the checkpoints of resumed runs; return their stream position, None if all runs
        start from the beginning.
        """
        states: set[StreamState | None] = set()
        for number, run in self._active.items():
            state, notices = run.restore() if resume[number] else (None, [])
            states.add(state)
            yield number, StartRecord(step=run.trainer.steps_done, tokens=run.tokens)
            for notice in notices:
                yield number, NoticeRecord(level="warning", message=notice)
        if len(states) > 1:
            raise UserError(
                "These runs stopped at different steps of their training; resume them one by one."
            )
        return states.pop()

    def _step(
        self, number: int, run: TrainingRun, batch: Tensor
    ) -> Iterator[tuple[int, AnyRecord]]:
        """One run's step; a run that is halted or fails leaves the pass."""
        assert self._stream is not None
        assert self._clock is not None
        try:
            for record in run.step(batch, self._stream, self._clock):
                yield number, run.tracked(record)
        except Halted:
            yield from self._end(number, "stopped")
        except LostHelperError:  # others need it too
            raise
        except UserError as error:
            yield self._failed(number, error)

    def _end(
        self, number: int, reason: Literal["finished", "stopped"]
    ) -> Iterator[tuple[int, AnyRecord]]:
        """Let a run save, evaluate and index its SAE, then return from the pass."""
        run = self._active[number]
        run.stop.finishing = True
        try:
            if self._stream is not None and run.trainer.steps_done > 0:
                assert self._clock is not None
                with self._clock.pause():  # the other runs' throughput does not count it
                    for record in run.finish(self._stream):
                        yield number, run.tracked(record)
        except Halted:
            reason = "stopped"
        except LostHelperError:
            raise
        except UserError as error:
            yield self._failed(number, error)
            return
        del self._active[number]
        for notice in new_notices(self._feed, set(self._reported)):
            yield number, notice
        yield number, EndRecord(reason=reason, step=run.trainer.steps_done, tokens=run.tokens)

    def _failed(self, number: int, error: UserError) -> tuple[int, AnyRecord]:
        run = self._active.pop(number)
        return number, FailureRecord(
            error_type=type(error).__name__, message=str(error), step=run.trainer.steps_done
        )

    def _to_active(self, record: AnyRecord) -> Iterator[tuple[int, AnyRecord]]:
        return ((number, record) for number in list(self._active))

    def _halt_if_all_end(self) -> None:
        if all(run.stop.is_on for run in self._active.values()):
            raise Halted


def _to_all(members: Sequence[Member], record: AnyRecord) -> Iterator[tuple[int, AnyRecord]]:
    return ((number, record) for number in range(len(members)))
