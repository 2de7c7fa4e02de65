"""Training from configurations to browsable features, as a generator of records.

`train_together` opens what feeds the runs, streams activations through their SAEs, lets each
evaluate, checkpoint and build feature indexes into its own folder, and yields what happens. Who
stores or shows it is not its business: the job process of the backend, the command line and
notebooks all just iterate. `train` is the same for one run.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import Literal

import yaml
from torch import Tensor

from sae_engine.activations.feed import Feed, open_feed
from sae_engine.activations.stream import BEGINNING, ActivationStream, StreamState
from sae_engine.errors import UserError
from sae_engine.files import RunFolder, published_file
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
from sae_engine.training.checkpoint import saved_position
from sae_engine.training.heldout import SharedHeldout
from sae_engine.training.member import Member, never
from sae_engine.training.pretrained import inspect_pretrained
from sae_engine.training.run import Clock, Halted, NonFiniteLossError, Run, StopSwitch


def train(
    config: RunConfig,
    folder: RunFolder,
    *,
    should_stop: Callable[[], StopRequest] = never,
    resume: bool = False,
) -> Iterator[AnyRecord]:
    """Train one SAE as `config` says and leave everything in `folder`; see `Member`.

    Raises `UserError` in one sentence when the run cannot go on.
    """
    for _, record in train_together([Member(config, folder, should_stop, resume)]):
        if isinstance(record, FailureRecord):
            kind = NonFiniteLossError if record.error_type == "NonFiniteLossError" else UserError
            raise kind(record.message)
        yield record


def train_together(members: Sequence[Member]) -> Iterator[tuple[int, AnyRecord]]:
    """Train several SAEs on one pass of the language model; yield (place of the member, record).

    All members have the same `RunConfig.pass_key`, and those that resume stand at the same place.
    Each one's last record is an `EndRecord` or a `FailureRecord`: a member that is stopped or fails
    leaves, the others go on. A member's SAE is what it would be if it were trained alone. Raises
    `UserError` when none can start or go on. Those with `sae.pretrained` train nothing and take
    turns.
    """
    configs = [member.config for member in members]
    for config in configs:
        check_config(config)
    assert len({config.pass_key for config in configs}) == 1, "these runs share no pass"
    for member in members:
        member.folder.path.mkdir(parents=True, exist_ok=True)
        member.folder.remove_leftovers()
        with published_file(member.folder.config) as path:
            tree = member.config.model_dump(mode="json")
            path.write_text(yaml.safe_dump(tree, sort_keys=False), "utf-8")

    if configs[0].sae.pretrained is not None:
        for number, member in enumerate(members):
            yield from _inspect(number, member)
        return
    with ExitStack() as stack:
        try:
            one_pass = yield from _open_pass(members, stack)
        except Halted:  # before training began, when every run was asked to stop
            for number, member in enumerate(members):
                step, tokens = saved_position(member.folder) if member.resume else (0, 0)
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
    feed = open_feed(configs, check_stop)
    for notice in feed.notices:
        yield from _to_all(members, NoticeRecord(level="warning", message=notice))
    if any(config.train.num_epochs is not None for config in configs):
        yield from _to_all(members, PhaseRecord(phase="counting the training text"))
    heldout = SharedHeldout(feed, configs, members[0].folder.index_corpus)
    stack.enter_context(closing(heldout))
    runs: list[Run] = []
    for number, (member, stop) in enumerate(zip(members, stops, strict=True)):
        run = Run(member.config, member.folder, feed, heldout, stop)
        runs.append(stack.enter_context(closing(run)))
        yield number, run.plan
    return _Pass(feed, heldout, runs)


def _inspect(number: int, member: Member) -> Iterator[tuple[int, AnyRecord]]:
    """A member whose SAE was trained elsewhere."""
    try:
        for record in inspect_pretrained(member):
            yield number, record
    except UserError as error:
        yield number, FailureRecord(error_type=type(error).__name__, message=str(error), step=0)


class _Pass:
    """One pass of the language model and the runs that are still on it."""

    def __init__(self, feed: Feed, heldout: SharedHeldout, runs: Sequence[Run]) -> None:
        self._feed = feed
        self._heldout = heldout
        self._active = dict(enumerate(runs))
        self._batch_size = runs[0].config.train.batch_size_tokens
        self._seed = runs[0].config.data.seed
        self._stream: ActivationStream | None = None

    def records(self, resume: Sequence[bool]) -> Iterator[tuple[int, AnyRecord]]:
        try:
            yield from self._steps(resume)
        except Halted:  # while reading, when every run on the pass was asked to end
            for number in list(self._active):
                yield from self._end(number, "stopped")

    def _steps(self, resume: Sequence[bool]) -> Iterator[tuple[int, AnyRecord]]:
        """The training loop."""
        state = yield from self._restore(resume)
        yield from self._to_active(PhaseRecord(phase="reading the first activations"))
        clock = Clock(self._batch_size)
        self._stream = stream = ActivationStream(
            lambda cursor: self._feed.open_source(cursor, self._halt_if_all_end),
            batch_size=self._batch_size,
            seed=self._seed,
            state=state or BEGINNING,
        )
        if state is None:
            for run in self._active.values():
                run.begin(stream.first_window[run.hook])
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
            for number, run in list(self._active.items()):
                yield from self._step(number, run, batch[run.hook], clock)

    def _restore(
        self, resume: Sequence[bool]
    ) -> Generator[tuple[int, AnyRecord], None, StreamState | None]:
        """Where the runs stand that resume; None if they all begin."""
        states: set[StreamState | None] = set()
        for number, run in self._active.items():
            state, notice = run.restore() if resume[number] else (None, None)
            states.add(state)
            yield number, StartRecord(step=run.trainer.steps_done, tokens=run.tokens)
            if notice is not None:
                yield number, NoticeRecord(level="warning", message=notice)
        if len(states) > 1:
            raise UserError(
                "These runs stand at different places in their training; resume them one by one."
            )
        return states.pop()

    def _step(
        self, number: int, run: Run, batch: Tensor, clock: Clock
    ) -> Iterator[tuple[int, AnyRecord]]:
        """One run's step; a run that halts or fails leaves the pass."""
        assert self._stream is not None
        try:
            for record in run.step(batch, self._stream, clock):
                yield number, run.tracked(record)
        except Halted:
            yield from self._end(number, "stopped")
        except UserError as error:
            yield self._failed(number, error)

    def _end(
        self, number: int, reason: Literal["finished", "stopped"]
    ) -> Iterator[tuple[int, AnyRecord]]:
        """A run leaves with all that it has learned."""
        run = self._active[number]
        run.stop.finishing = True
        try:
            if self._stream is not None and run.trainer.steps_done > 0:
                for record in run.finish(self._stream):
                    yield number, run.tracked(record)
        except Halted:
            reason = "stopped"
        except UserError as error:
            yield self._failed(number, error)
            return
        del self._active[number]
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
