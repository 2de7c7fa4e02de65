"""A server with two small finished runs whose features can be browsed, mapped and matched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from backend import store
from backend.settings import Settings
from backend.store.database import open_database
from sae_engine.presets import resolve_config
from sae_engine.schema.labels import LabelUpdate
from sae_engine.schema.records import MetricsRecord, SnapshotRecord
from tests.browser.server import Server, serving
from tests.sae_engine.features.index_reference import build, random_case

HOSTILE = "<script>window.harmed = true</script>"
D_SAE = 18  # so few that are alive lie on a plane, which needs no UMAP
LABELED = 2


@contextmanager
def serving_two_runs(data_dir: Path) -> Iterator[tuple[Server, list[str]]]:
    """The server, and the ids of the runs `first` and `second`, whose decoders share most rows."""
    settings = Settings(data_dir=data_dir)
    rows = torch.randn(D_SAE, 6, generator=torch.Generator().manual_seed(0))
    ids: list[str] = []
    with (
        open_database(settings.resolved_database_url) as database,
        database.writing() as session,
    ):
        for seed, name in enumerate(("first", "second")):
            config = resolve_config("quick-test", {"name": name, "sae": {"k": 4 + seed}})
            run_id = store.add_run(session, config=config, status="finished").id
            _publish(settings.run_folder(run_id).path, seed, rows.roll(seed, dims=0))
            store.add_snapshot(
                session,
                run_id,
                SnapshotRecord(step=7, tokens=1000, index_tokens=200, seconds=0.1, final=True),
            )
            measured = [
                MetricsRecord(step=s, tokens=s, time=s, values={"fvu": 1 / s}) for s in (1, 2, 3)
            ]
            store.add_metrics(session, run_id, measured)
            store.set_label(session, run_id, LABELED, LabelUpdate(label=HOSTILE))
            ids.append(run_id)
    with serving(data_dir) as server:
        yield server, ids


def _publish(folder: Path, seed: int, rows: torch.Tensor) -> None:
    case = random_case(seed, d_sae=D_SAE)
    build(folder, case, W_dec=rows, write_sae=lambda path: save_file({"W_dec": rows}, path))
