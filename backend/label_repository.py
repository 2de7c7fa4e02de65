"""All SQL about labels' origins and about the jobs that make labels; see `repository`."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.models import LabelRow
from sae_engine.schema.labels import DetectionScore, FeatureLabel, LabelOrigin


def written_labels(
    session: Session, run_id: str, features: Sequence[int] | None = None
) -> dict[int, FeatureLabel]:
    """What is written about the features of a run, or about some of them, in order."""
    query = select(LabelRow).where(LabelRow.run_id == run_id).order_by(LabelRow.feature)
    if features is not None:
        query = query.where(LabelRow.feature.in_(features))
    return {row.feature: _shape(row) for row in session.scalars(query)}


def _shape(row: LabelRow) -> FeatureLabel:
    origin = LabelOrigin.model_validate(
        {
            "author": row.author or "person",
            "model": row.model,
            "prompt_version": row.prompt_version,
            "created_at": row.written_at,
            "score": None if row.score is None else DetectionScore.model_validate_json(row.score),
        }
    )
    return FeatureLabel(
        feature=row.feature, label=row.label, notes=row.notes, starred=row.starred, origin=origin
    )
