"""Labels, notes and stars of features, written by people or proposed by a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from backend.errors import ConflictError
from backend.store.common import changes_rows, now
from backend.store.models import LabelRow
from sae_engine.schema.labels import (
    DetectionScore,
    FeatureLabel,
    LabelOrigin,
    LabelPatch,
    LabelUpdate,
)


def labels(session: Session, run_id: str) -> Mapping[int, str]:
    """The labels of a run's labeled features, by feature."""
    rows = session.execute(
        select(LabelRow.feature, LabelRow.label).where(
            LabelRow.run_id == run_id, LabelRow.label != ""
        )
    )
    return {row.feature: row.label for row in rows}


def stars(session: Session, run_id: str) -> frozenset[int]:
    """A run's starred features."""
    chosen = select(LabelRow.feature).where(LabelRow.run_id == run_id, LabelRow.starred)
    return frozenset(session.scalars(chosen))


def written_labels(
    session: Session, run_id: str, features: Sequence[int] | None = None
) -> dict[int, FeatureLabel]:
    """Everything written about a run's features, or about some of them, by feature in order."""
    query = select(LabelRow).where(LabelRow.run_id == run_id).order_by(LabelRow.feature)
    if features is not None:
        query = query.where(LabelRow.feature.in_(features))
    return {row.feature: _shape(row) for row in session.scalars(query)}


def label(session: Session, run_id: str, feature: int) -> LabelUpdate:
    """What is written about one feature; empty if nothing is."""
    row = session.get(LabelRow, (run_id, feature))
    if row is None:
        return LabelUpdate(label="", notes="", starred=False)
    return LabelUpdate(label=row.label, notes=row.notes, starred=row.starred)


def patch_labels(session: Session, run_id: str, patch: LabelPatch) -> None:
    """Store what a person changed on several features at once.

    Raises `ConflictError` over what another person wrote since `patch.replaces` was seen.
    """
    change = patch.model_dump(include={"label", "notes", "starred"}, exclude_none=True)
    for feature in dict.fromkeys(patch.features):
        _check_seen(session, run_id, feature, patch)
        written = label(session, run_id, feature).model_copy(update=change)
        set_label(session, run_id, feature, written)


def _check_seen(session: Session, run_id: str, feature: int, patch: LabelPatch) -> None:
    row, seen = session.get(LabelRow, (run_id, feature)), patch.replaces
    if row is None or seen is None:
        return
    by_person = row.author == "person"  # a model's proposal is always replaced
    if patch.label is not None and by_person and row.label not in (seen.label, patch.label):
        raise ConflictError(
            f"The label of feature {feature} is now “{row.label}”, so “{patch.label}” was not "
            "saved.",
            kind="label-changed",
        )
    if patch.notes is not None and row.notes not in (seen.notes, patch.notes):
        raise ConflictError(
            f"The notes on feature {feature} were changed meanwhile, so these were not saved:\n"
            f"{patch.notes}",
            kind="label-changed",
        )


def set_label(session: Session, run_id: str, feature: int, written: LabelUpdate) -> None:
    """Store what a person wrote; a label that the person changed becomes the person's."""
    row = session.get(LabelRow, (run_id, feature))
    if row is None:
        row = LabelRow(run_id=run_id, feature=feature)
        session.add(row)
    if row.label != written.label:
        row.author, row.written_at = "person", now()
        row.model = row.prompt_version = row.score = None
    row.label, row.notes, row.starred = written.label, written.notes, written.starred


def propose_label(
    session: Session,
    run_id: str,
    feature: int,
    label: str,
    *,
    model: str,
    prompt_version: str,
    score: DetectionScore | None,
) -> bool:
    """Store a model's label unless a person has written one; returns whether it was stored.

    One conditional UPDATE, so that a person who writes at the same time is never overwritten.
    """
    values = {
        "label": label,
        "author": "model",
        "model": model,
        "prompt_version": prompt_version,
        "written_at": now(),
        "score": None if score is None else score.model_dump_json(),
    }
    here = (LabelRow.run_id == run_id, LabelRow.feature == feature)
    replaceable = or_(LabelRow.label == "", LabelRow.author == "model")
    if changes_rows(session, update(LabelRow).where(*here, replaceable).values(values)):
        return True
    try:
        with session.begin_nested():
            session.add(LabelRow(run_id=run_id, feature=feature, notes="", starred=False, **values))
    except IntegrityError:
        return False
    return True


def _shape(row: LabelRow) -> FeatureLabel:
    origin = LabelOrigin.model_validate(
        {
            "author": row.author,
            "model": row.model,
            "prompt_version": row.prompt_version,
            "created_at": row.written_at,
            "score": None if row.score is None else DetectionScore.model_validate_json(row.score),
        }
    )
    return FeatureLabel(
        feature=row.feature, label=row.label, notes=row.notes, starred=row.starred, origin=origin
    )
