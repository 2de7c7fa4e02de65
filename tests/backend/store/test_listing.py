"""Lists of runs: filters, order, and pages that neither skip nor repeat a run."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from typing import Any, get_args

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from backend import store
from backend.store import RunFilter
from backend.store.database import Database
from backend.store.listing import sorted_values
from backend.store.models import RunRow
from sae_engine.presets import resolve_config
from sae_engine.schema.features import SortOrder
from sae_engine.schema.runs import RunPage, RunPatch, RunSort, RunStatus, TagCount

pytestmark = pytest.mark.both_databases

METRICS: list[dict[str, float]] = [
    {"fvu": 0.5, "l0": 32.0},
    {"fvu": 0.9, "eval_fvu": 0.25, "l0": 16.0, "ce_delta": -0.1},
    {},
    {"eval_fvu": math.nan, "fvu": 0.1, "l0": math.inf, "ce_delta": 0.0},
    {"fvu": 0.5, "eval_l0": 8.0, "ce_delta": 1e-300},
    {"eval_fvu": 0.0, "l0": 32.0, "ce_delta": 3.0},
]
NAMES = ["b", "A", "Ärger", "a", "100 % sure_ly", "äRGER"]
STATUSES: list[RunStatus] = ["finished", "failed", "queued", "running", "queued", "stopped"]


def add_all(session: Session) -> list[RunRow]:
    rows: list[RunRow] = []
    for name, status, latest in zip(NAMES, STATUSES, METRICS, strict=True):
        config = resolve_config("quick-test", {"name": name})
        row = store.add_run(session, config=config, status="running")
        store.update_metrics(session, row.id, latest)
        session.execute(update(RunRow).where(RunRow.id == row.id).values(status=status))
        rows.append(row)
    session.flush()
    for row in rows:
        session.refresh(row)
    return rows


def value_of(row: RunRow, sort: RunSort) -> Any:
    """A run's sort key, computed from its metrics; None sorts last."""
    latest = METRICS[row.seq - 1]
    if sort in ("created", "name", "status"):
        lives = get_args(RunStatus)
        return {"created": row.seq, "name": row.name.lower(), "status": lives.index(row.status)}[
            sort
        ]
    if sort == "fvu":
        value = latest.get("eval_fvu", latest.get("fvu"))
    elif sort == "l0":
        value = latest.get("eval_l0", latest.get("l0"))
    else:
        value = latest.get("ce_delta")
    return value if value is not None and math.isfinite(value) else None


def expected(rows: Sequence[RunRow], sort: RunSort, order: SortOrder) -> list[int]:
    newest_first = sorted(rows, key=lambda row: -row.seq)
    there = [row for row in newest_first if value_of(row, sort) is not None]
    there.sort(key=lambda row: value_of(row, sort), reverse=order == "desc")
    if order == "desc":  # a reversed sort keeps equals in their order, too
        assert [r.seq for r in there] == [
            r.seq for r in sorted(there, key=lambda row: (value_of(row, sort), row.seq))[::-1]
        ]
    absent = [row for row in newest_first if value_of(row, sort) is None]
    return [row.seq for row in (*there, *absent)]


def walk(list_page: Callable[[str | None], store.RunList]) -> list[int]:
    found: list[int] = []
    cursor = None
    while True:
        page = list_page(cursor)
        found += [row.seq for row in page.rows]
        cursor = page.next_cursor
        if cursor is None:
            return found


@pytest.mark.parametrize("name", ["fvu", "l0"])
def test_lists_are_sorted_by_the_held_out_value_once_it_is_measured(name: str) -> None:
    trained, heldout = {name: 2.0}, {f"eval_{name}": 3.0}
    assert sorted_values(trained)[name] == 2.0
    assert sorted_values(trained | heldout)[name] == sorted_values(heldout | trained)[name] == 3.0
    assert sorted_values(trained | {f"eval_{name}": math.nan})[name] is None


@pytest.mark.parametrize("order", get_args(SortOrder))
@pytest.mark.parametrize("sort", get_args(RunSort))
def test_pages_of_any_size_add_up_to_the_sorted_list(
    database: Database, sort: RunSort, order: SortOrder
) -> None:
    with database.writing() as session:
        rows = add_all(session)
    with database.reading() as session:
        for limit in (1, 2, 5, 6, 100):
            found = walk(
                lambda cursor, limit=limit: store.list_runs(
                    session, sort=sort, order=order, limit=limit, cursor=cursor
                )
            )
            assert found == expected(rows, sort, order), limit


def test_by_default_the_newest_the_best_and_the_first_name_come_first(
    database: Database,
) -> None:
    with database.writing() as session:
        add_all(session)
    with database.reading() as session:
        firsts = {
            sort: store.list_runs(session, sort=sort).rows[0].name for sort in get_args(RunSort)
        }
    assert firsts == {
        "created": "äRGER",
        "name": "100 % sure_ly",
        "status": "100 % sure_ly",
        "fvu": "äRGER",
        "l0": "100 % sure_ly",
        "ce_delta": "A",
    }


def test_a_run_that_moves_or_is_deleted_between_pages_hides_no_other(
    database: Database,
) -> None:
    with database.writing() as session:
        add_all(session)
        first = store.list_runs(session, sort="fvu", limit=2)
        assert [row.name for row in first.rows] == ["äRGER", "A"]
        store.update_metrics(session, first.rows[1].id, {"fvu": 7.0})
        session.execute(update(RunRow).where(RunRow.name == "A").values(fvu=7.0))
        store.delete_run(session, first.rows[0].id)
        rest = store.list_runs(session, sort="fvu", cursor=first.next_cursor)
    assert [row.name for row in rest.rows] == ["100 % sure_ly", "b", "A", "a", "Ärger"]


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (RunFilter(q="R"), {"Ärger", "äRGER", "100 % sure_ly"}),
        (RunFilter(q="ärGER"), {"Ärger", "äRGER"}),
        (RunFilter(q="%"), {"100 % sure_ly"}),
        (RunFilter(q="_"), {"100 % sure_ly"}),
        (RunFilter(tags=["x"]), {"A", "b", "a"}),
        (RunFilter(tags=["x", "Ä y"]), {"A", "a"}),
        (RunFilter(tags=["x", "no"]), set()),
        (RunFilter(tags=["X"]), set()),
        (RunFilter(q="ä Y"), {"A", "a"}),
        (RunFilter(q="spoken"), {"b"}),
        (RunFilter(status=["queued", "running"], q="r"), {"Ärger", "100 % sure_ly"}),
        (RunFilter(archived=True), {"away"}),
        (RunFilter(archived=None, q="w"), {"away", "b"}),
        (RunFilter(group_id="g"), {"away"}),
        (RunFilter(q="zzz"), set()),
    ],
)
def test_a_filter_selects_matching_runs_and_counts_all_pages(
    database: Database, wanted: RunFilter, names: set[str]
) -> None:
    with database.writing() as session:
        rows = {row.name: row for row in add_all(session)}
        for name, tags in {"A": ["x", "Ä y"], "b": ["x"], "a": ["Ä y", "x", "z"]}.items():
            store.patch_run(session, rows[name].id, RunPatch(tags=tags))
        store.patch_run(session, rows["b"].id, RunPatch(notes="Well SPOKEN"))
        config = resolve_config("quick-test", {"name": "away"})
        away = store.add_run(session, config=config, status="finished", group_id="g")
        if wanted.group_id is None:
            store.patch_run(session, away.id, RunPatch(archived=True))
        found = store.list_runs(session, wanted, limit=2)
        rest = store.list_runs(session, wanted, limit=100)
    assert {row.name for row in rest.rows} == names
    assert found.total == rest.total == len(rest.rows)
    assert len(found.rows) == min(2, len(rest.rows))


def test_an_id_is_found_by_its_prefix(database: Database) -> None:
    with database.writing() as session:
        row = add_all(session)[0]
        found = store.list_runs(session, RunFilter(q=row.id[:8].upper())).rows
    assert [each.id for each in found] == [row.id]


def test_tags_are_counted_most_common_first(database: Database) -> None:
    with database.writing() as session:
        first, second, third, *_ = add_all(session)
        for row, tags in ((first, ["b", "a"]), (second, ["b"]), (third, ["c"])):
            store.patch_run(session, row.id, RunPatch(tags=tags))
        store.patch_run(session, third.id, RunPatch(archived=True))
        counts = store.count_tags(session)
    assert counts == [
        TagCount(tag="b", num_runs=2),
        TagCount(tag="a", num_runs=1),
        TagCount(tag="c", num_runs=1),
    ]


def test_lists_and_tags_over_rest(client: TestClient, database: Database) -> None:
    with database.writing() as session:
        rows = add_all(session)
        session.execute(update(RunRow).values(status="finished"))
        for row in rows[:2]:
            store.patch_run(session, row.id, RunPatch(tags=["x", "y"]))
    query = {"tag": ["x", "y"], "sort": "l0", "limit": 1}
    page = RunPage.model_validate_json(client.get("/api/runs", params=query).content)
    assert ([run.name for run in page.items], page.total) == (["A"], 2)
    more = client.get("/api/runs", params={**query, "cursor": page.next_cursor})
    assert [run["name"] for run in more.json()["items"]] == ["b"]
    assert client.get("/api/tags").json()[0] == {"tag": "x", "num_runs": 2}
    other = client.get("/api/runs", params={"sort": "fvu", "cursor": page.next_cursor})
    assert other.status_code == 422
    assert "sorted by fvu, asc" in other.json()["detail"]


@pytest.mark.parametrize(
    "place",
    [
        b"",
        b"\xff",
        b"null",
        b"7",
        b"{}",
        b'["created","desc",1]',
        b'["created","desc",1,"2"]',
        b'["created","desc","1",2]',
        b'["created","desc",null,2]',
        b'["created","desc",true,2]',
        b'["created","desc",1,99999999999999999999]',
        b'["created","desc",1e400,2]',
        b'["created","asc",1,2]',
        b"[" * 1000,
    ],
)
def test_an_invalid_cursor_is_refused(client: TestClient, place: bytes) -> None:
    cursor = base64.urlsafe_b64encode(place).decode() or "é"
    answer = client.get("/api/runs", params={"cursor": cursor})
    assert answer.status_code == 422, answer.text
    assert "not a cursor" in answer.json()["detail"]


@pytest.mark.both_databases
def test_a_cursor_whose_key_no_database_takes_is_refused(client: TestClient) -> None:
    for sort, key in [
        ("name", r'"\ud800"'), ("name", r'"a\udfffb"'), ("name", r'"a\u0000b"'), ("name", "1"),
        ("fvu", "NaN"), ("l0", "-Infinity"), ("ce_delta", "1e999"), ("fvu", '"1"'),
    ]:  # fmt: skip
        place = f'["{sort}","asc",{key},5]'.encode()
        query = {"sort": sort, "order": "asc", "cursor": base64.urlsafe_b64encode(place).decode()}
        answer = client.get("/api/runs", params=query)
        assert answer.status_code == 422, (sort, key, answer.text)
        assert "is not a cursor of a list sorted by" in answer.json()["detail"], (sort, key)
