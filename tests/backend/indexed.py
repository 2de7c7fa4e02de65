"""Runs with feature indexes, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from backend import store
from backend.settings import Settings
from backend.store.database import Database
from sae_engine.presets import resolve_config
from sae_engine.schema.records import SnapshotRecord
from sae_engine.schema.runs import RunStatus
from tests.sae_engine.features.index_reference import build, random_case

D_SAE = 30
NO_OPTIONS: Mapping[int, dict[str, Any]] = MappingProxyType({})


def add_indexed_run(
    settings: Settings,
    database: Database,
    steps: Sequence[int] = (3, 7),
    *,
    status: RunStatus = "finished",
    options: Mapping[int, dict[str, Any]] = NO_OPTIONS,
    **config: object,
) -> str:
    """A run with random snapshots of `D_SAE` features; `options` of `build` by step."""
    resolved = resolve_config("quick-test", {"name": "indexed", **config})
    with database.writing() as session:
        run_id = store.add_run(session, config=resolved, status=status).id
        for step in steps:
            case = random_case(step, d_sae=D_SAE)
            build(settings.run_folder(run_id).path, case, step=step, **options.get(step, {}))
            record = SnapshotRecord(
                step=step, tokens=1000, index_tokens=200, seconds=0.1, final=step == steps[-1]
            )
            store.add_snapshot(session, run_id, record)
    return run_id
