"""A run of a test's database, for tests of what the engine's records become."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from backend import store
from backend.jobs.execution import execute
from backend.jobs.recorder import Recorder
from backend.settings import Settings
from backend.store.database import Database
from backend.store.models import RunRow
from sae_engine.presets import resolve_config
from sae_engine.schema.records import AnyRecord, StopRequest
from sae_engine.training.member import Member

JOB = "bench"
"""The job of all runs made here."""
ShouldStop = Callable[[], StopRequest]


class Bench:
    """One run of a database, to be trained by a test's engine."""

    def __init__(self, database: Database, settings: Settings, name: str = "finish") -> None:
        self.database = database
        self.config = resolve_config("quick-test", {"name": name})
        with database.writing() as session:
            self.id = store.add_run(session, config=self.config, status="running", job=JOB).id
        self.folder = settings.run_folder(self.id)
        self.folder.path.mkdir(parents=True)

    def execute(self, records: Callable[[ShouldStop], Iterator[AnyRecord]]) -> str:
        def train(members: Sequence[Member]) -> Iterator[tuple[int, AnyRecord]]:
            [member] = members
            return ((0, record) for record in records(member.should_stop))

        [status] = execute(self.database, {self.id: self.member}, train, job=JOB)
        return status

    @property
    def member(self) -> Member:
        return Member(self.config, self.folder)

    def recorder(self) -> Recorder:
        return Recorder(self.database, self.id, self.member, job=JOB)

    def row(self) -> RunRow:
        with self.database.reading() as session:
            return store.get_run(session, self.id)
