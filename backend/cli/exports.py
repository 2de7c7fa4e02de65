"""A run's SAE written for another program, or its features for people and programs."""

from __future__ import annotations

from pathlib import Path

from backend import store
from backend.settings import STYLE_SHEET, Settings
from backend.store.database import open_database
from backend.store.label_jobs import written_labels
from sae_engine.errors import UserError
from sae_engine.features.export.source import ExportSource
from sae_engine.features.export.write import export_features
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.interop.export import export_saelens
from sae_engine.schema.config import RunConfig
from sae_engine.schema.exports import EXPORT_FORMATS, ExportFormat


def export_here(
    settings: Settings,
    run: str,
    target: Path,
    *,
    format: ExportFormat,
    snapshot: int | None = None,
    include_dead: bool = False,
) -> str:
    """Write the run that `run` names into the new folder `target`; returns what is left out.

    Raises `UserError` for an unknown run, one without an SAE or features, or a folder that exists.
    """
    with (
        open_database(settings.resolved_database_url) as database,
        database.reading() as session,
    ):
        row = store.find_run(session, run)
        steps = [made.step for made in store.snapshots(session, row.id)]
        labels = written_labels(session, row.id)
    folder = settings.run_folder(row.id)
    if EXPORT_FORMATS[format].writer is None:
        export_saelens(folder, target)
        return ""
    if not steps:
        raise UserError(f"The run '{row.name}' has no features yet.")
    if snapshot is not None and snapshot not in steps:
        raise UserError(
            f"There is no snapshot at step {snapshot}; there are {', '.join(map(str, steps))}."
        )
    source = ExportSource(
        index=FeatureIndex.open(folder.feature_index(steps[-1] if snapshot is None else snapshot)),
        run_id=row.id,
        run_name=row.name,
        config=RunConfig.model_validate(row.config),
        labels=labels,
        include_dead=include_dead,
        style=STYLE_SHEET.read_text("utf-8"),
    )
    export_features(source, format, target)
    return source.left_out
