"""Lists of runs: filtered, sorted and paginated."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

from sqlalchemy import ColumnElement, and_, case, distinct, func, or_, select
from sqlalchemy.orm import Session

from backend.errors import UnprocessableError
from backend.store.models import RunRow, TagRow
from sae_engine.schema.features import SortOrder
from sae_engine.schema.runs import RunSort, RunStatus, TagCount

SORTED_BY = {"fvu": ("eval_fvu", "fvu"), "l0": ("eval_l0", "l0"), "ce_delta": ("ce_delta",)}
"""Column of `RunRow` to metrics; the column holds the first of them that was measured."""


_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""Characters that databases refuse: NUL and half surrogate pairs."""


def sorted_values(latest: Mapping[str, float]) -> dict[str, float | None]:
    """The columns that lists are sorted by, from a run's latest metrics."""
    values: dict[str, float | None] = {}
    for column, names in SORTED_BY.items():
        value = next((latest[name] for name in names if name in latest), None)
        values[column] = value if value is not None and math.isfinite(value) else None
    return values


class RunFilter(NamedTuple):
    """Which runs a list contains; an empty field matches all."""

    status: Sequence[RunStatus] = ()
    q: str = ""
    """Text in the name, notes or a tag, or a prefix of the id; case is ignored."""
    tags: Sequence[str] = ()
    """The run has all of these."""
    group_id: str | None = None
    archived: bool | None = False

    @property
    def conditions(self) -> list[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = []
        if self.archived is not None:
            found.append(RunRow.archived.is_(self.archived))
        if self.status:
            found.append(RunRow.status.in_(self.status))
        if self.group_id is not None:
            found.append(RunRow.group_id == self.group_id)
        for tag in self.tags:
            found.append(RunRow.id.in_(select(TagRow.run_id).where(TagRow.tag == tag)))
        if self.q:
            wanted = self.q.lower()
            tagged = func.lower(TagRow.tag).contains(wanted, autoescape=True)
            found.append(
                or_(
                    func.lower(RunRow.name).contains(wanted, autoescape=True),
                    func.lower(RunRow.notes).contains(wanted, autoescape=True),
                    RunRow.id.startswith(wanted, autoescape=True),
                    RunRow.id.in_(select(TagRow.run_id).where(tagged)),
                )
            )
        return found


class RunList(NamedTuple):
    """One page of a list."""

    rows: Sequence[RunRow]
    next_cursor: str | None
    total: int
    """Runs on all pages."""


def list_runs(
    session: Session,
    wanted: RunFilter | None = None,
    *,
    sort: RunSort = "created",
    order: SortOrder | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> RunList:
    """A page of runs; by default the newest, best or alphabetically first come first.

    Runs without a value to sort by come last; ties are ordered newest first.
    """
    conditions = (wanted or RunFilter()).conditions
    total = session.scalar(select(func.count()).select_from(RunRow).where(*conditions)) or 0
    order = order or ("desc" if sort == "created" else "asc")
    key = _key(sort)
    if cursor is not None:
        conditions.append(_after(key, order, _decoded(cursor, sort, order)))
    directed = key.asc() if order == "asc" else key.desc()
    found = session.execute(
        select(RunRow, key.label("key"))
        .where(*conditions)
        .order_by(key.is_(None), directed, RunRow.seq.desc())
        .limit(limit + 1)
    ).all()
    page = found[:limit]
    next_cursor = None
    if len(found) > limit:
        last_row, last_key = page[-1]
        next_cursor = _encoded(_Place(sort, order, last_key, last_row.seq))
    return RunList([row for row, _ in page], next_cursor, total)


def count_tags(session: Session) -> list[TagCount]:
    """Every tag with its number of runs, most common first."""
    number = func.count(distinct(TagRow.run_id))
    rows = session.execute(
        select(TagRow.tag, number).group_by(TagRow.tag).order_by(number.desc(), TagRow.tag)
    )
    return [TagCount(tag=tag, num_runs=num_runs) for tag, num_runs in rows]


def _key(sort: RunSort) -> ColumnElement[Any]:
    match sort:
        case "created":
            return RunRow.seq.expression
        case "name":
            return func.lower(RunRow.name)
        case "status":  # in the order of a run's life cycle
            ranks = {status: rank for rank, status in enumerate(get_args(RunStatus))}
            return case(ranks, value=RunRow.status)
        case "fvu":
            return RunRow.fvu.expression
        case "l0":
            return RunRow.l0.expression
        case "ce_delta":
            return RunRow.ce_delta.expression


class _Place(NamedTuple):
    """The last run of a page: how its list is sorted, its sort key, and its `seq`."""

    sort: RunSort
    order: SortOrder
    key: str | float | None
    seq: int


def _after(key: ColumnElement[Any], order: SortOrder, place: _Place) -> ColumnElement[bool]:
    """Condition for the runs after a place in the list."""
    older = RunRow.seq < place.seq
    if place.key is None:
        return and_(key.is_(None), older)
    beyond = key > place.key if order == "asc" else key < place.key
    return or_(key.is_(None), beyond, and_(key == place.key, older))


def _encoded(place: _Place) -> str:
    text = json.dumps(place, ensure_ascii=False, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decoded(cursor: str, sort: RunSort, order: SortOrder) -> _Place:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        place = _Place(*json.loads(text))
    except (ValueError, TypeError, RecursionError):
        place = None
    if (
        place is None
        or (place.sort, place.order) != (sort, order)
        or not _is_key(sort, place.key)
        or not _is_seq(place.seq)
    ):
        raise UnprocessableError(
            f"'{cursor}' is not a cursor of a list sorted by {sort}, {order}; use the next_cursor "
            "of an answer to the same request.",
            field="cursor",
        )
    return place


def _is_key(sort: RunSort, key: object) -> bool:
    match sort:
        case "created" | "status":
            return _is_seq(key)
        case "name":
            return isinstance(key, str) and _UNSTORABLE.search(key) is None
        case _:
            return key is None or (isinstance(key, float) and math.isfinite(key))


def _is_seq(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31
