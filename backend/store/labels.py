"""What is written about features."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.store.common import now
from backend.store.models import LabelRow
from sae_engine.schema.labels import LabelUpdate


def labels(session: Session, run_id: str) -> Mapping[int, str]:
    """The features of a run that have a label, and the label."""
    rows = session.execute(
        select(LabelRow.feature, LabelRow.label).where(
            LabelRow.run_id == run_id, LabelRow.label != ""
        )
    )
    return {row.feature: row.label for row in rows}


def label(session: Session, run_id: str, feature: int) -> LabelUpdate:
    row = session.get(LabelRow, (run_id, feature))
    if row is None:
        return LabelUpdate(label="", notes="", starred=False)
    return LabelUpdate(label=row.label, notes=row.notes, starred=row.starred)


def set_label(session: Session, run_id: str, feature: int, update: LabelUpdate) -> None:
    """Write what a person says; a label that the person changed is the person's from then on."""
    row = session.get(LabelRow, (run_id, feature))
    if row is None:
        row = LabelRow(run_id=run_id, feature=feature, label="")
        session.add(row)
    if row.label != update.label or row.author is None:
        row.author, row.written_at = "person", now()
        row.model = row.prompt_version = row.score = None
    row.label, row.notes, row.starred = update.label, update.notes, update.starred
