"""The REST API for runs, on a real database file."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from backend import store
from backend.app import create_api
from backend.settings import Settings
from backend.store.database import Database
from sae_engine.presets import resolve_config
from sae_engine.schema.problems import Problem
from sae_engine.schema.runs import RunPage
from tests.backend.conftest import create, read, wait_for_status

pytestmark = pytest.mark.both_databases


def problem(answer: Any, status: int) -> Problem:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = Problem.model_validate_json(answer.content)
    assert body.status == status
    assert body.detail
    return body


def listed(client: TestClient, **query: object) -> list[str]:
    answer = client.get("/api/runs", params={k: str(v) for k, v in query.items()})
    return [run.name for run in RunPage.model_validate_json(answer.content).items]


def test_a_run_is_created_from_a_preset_and_overrides(client: TestClient) -> None:
    body = {
        "preset": "quick-test",
        "config": {"sae": {"k": 8}},
        "name": "wait for it",
        "tags": ["b", "a", "b"],
        "notes": "hello",
    }
    answer = client.post("/api/runs", json=body)
    assert answer.status_code == 201
    run = answer.json()
    assert answer.headers["location"] == f"/api/runs/{run['id']}"
    expected = resolve_config("quick-test", {"sae": {"k": 8}, "name": "wait for it"})
    assert run["config"] == expected.model_dump(mode="json")
    assert (run["name"], run["tags"], run["notes"]) == ("wait for it", ["b", "a"], "hello")
    assert client.get(answer.headers["location"]).json()["id"] == run["id"]


@pytest.mark.parametrize(
    ("config", "start"),
    [
        ({}, "tiny-gemma2 L2 512 k16 "),
        (
            {"model": {"layer": 4, "site": "mlp_out"}, "sae": {"k": 8}},
            "tiny-gemma2 L4 mlp_out 512 k8 ",
        ),
        ({"model": {"hook_point": "model.layers.1"}}, "tiny-gemma2 model.layers.1 512 k16 "),
    ],
)
def test_a_run_without_a_name_is_named_after_what_it_trains_and_the_time(
    client: TestClient, config: dict[str, Any], start: str
) -> None:
    body = {"preset": "quick-test", "config": config}
    name = client.post("/api/runs", json=body).json()["name"]
    assert name.startswith(start)
    assert re.fullmatch(r"\d\d-\d\d \d\d:\d\d:\d\d", name.removeprefix(start))


@pytest.mark.parametrize(
    ("config", "field", "words"),
    [
        ({"model": {"name": "some/model"}}, "model.name", "HF_HUB_OFFLINE is set"),
        ({"model": {"name": "no such model"}}, "model.name", "There is no model 'no such model'"),
    ],
)
def test_a_model_that_the_hub_cannot_give_is_refused_at_once(
    client: TestClient, config: dict[str, Any], field: str, words: str
) -> None:
    answer = client.post("/api/runs", json={"preset": "quick-test", "config": config})
    [error] = problem(answer, 422).errors
    assert error.field == field
    assert words in error.message
    assert listed(client) == []


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"preset": "nope"}, "preset", "no preset 'nope'"),
        ({"config": {"sae": {"kk": 3}}}, "sae.kk", "Unknown setting"),
        ({"config": {"sae": {"d_sae": 8, "k": 9}}}, "sae.k", "sae.k = 9 is larger"),
        ({"config": {"train": {"lr": "fast"}}}, "train.lr", "fast"),
        ({"config": {"model": {"layer": 99}}}, "model.layer", "Layer 99 does not exist"),
        ({"nam": "x"}, "nam", "x"),
        ({"tags": "x"}, "tags", "x"),
    ],
)
def test_an_invalid_request_is_refused_with_the_fields_name(
    client: TestClient, body: dict[str, object], field: str, words: str
) -> None:
    refused = problem(client.post("/api/runs", json=body), 422)
    assert [error.field for error in refused.errors] == [field]
    assert words in refused.detail
    assert listed(client) == []


def test_broken_json_unknown_paths_and_methods_are_problems(client: TestClient) -> None:
    headers = {"content-type": "application/json"}
    problem(client.post("/api/runs", content="{", headers=headers), 422)
    problem(client.get("/api/nothing"), 404)
    problem(client.put("/api/runs"), 405)
    for path in ("", "/metrics", "/log", "/notices", "/snapshots", "/features", "/lookup?text=a"):
        assert "'nope'" in problem(client.get(f"/api/runs/nope{path}"), 404).detail


def test_a_missing_dataset_is_refused_before_a_job_starts(
    client: TestClient, settings: Settings
) -> None:
    missing = settings.data_dir / "missing.txt"
    body = {"preset": "quick-test", "config": {"data": {"dataset": str(missing)}}}
    assert str(missing) in problem(client.post("/api/runs", json=body), 422).detail


def test_files_outside_the_data_folder_are_refused_even_through_links(
    client: TestClient, settings: Settings, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    link = settings.data_dir / "link.txt"
    link.symlink_to(secret)
    folder = settings.data_dir / "texts"
    folder.mkdir()
    (folder / "link.txt").symlink_to(secret)
    for path in (secret, link, folder, settings.data_dir / ".." / "secret.txt"):
        body = {"preset": "quick-test", "config": {"data": {"dataset": str(path)}}}
        refused = problem(client.post("/api/runs", json=body), 422)
        assert "SAE_WORKBENCH_READ_DIRS" in refused.detail
        assert refused.errors[0].field == "data.dataset"
        parts = [{"dataset": "python-stdlib", "weight": 1}, {"dataset": str(path), "weight": 1}]
        body = {"preset": "quick-test", "config": {"data": {"mixture": parts}}}
        assert "SAE_WORKBENCH_READ_DIRS" in problem(client.post("/api/runs", json=body), 422).detail
    body = {"preset": "quick-test", "config": {"model": {"name": str(tmp_path)}}}
    assert problem(client.post("/api/runs", json=body), 422).errors[0].field == "model.name"


def test_files_inside_the_data_folder_are_accepted(client: TestClient, settings: Settings) -> None:
    text = settings.data_dir / "text.txt"
    text.write_text("".join(f"line {n}\n\n" for n in range(100)))
    create(client, config={"data": {"dataset": str(text)}})


def test_an_idempotency_key_creates_one_run_and_refuses_another_request(
    client: TestClient,
) -> None:
    headers = {"Idempotency-Key": "once"}
    body = {"preset": "quick-test", "name": "finish"}
    first = client.post("/api/runs", json=body, headers=headers)
    again = client.post("/api/runs", json=body, headers=headers)
    assert first.status_code == again.status_code == 201
    assert first.json()["id"] == again.json()["id"]
    other = client.post("/api/runs", json={**body, "name": "other"}, headers=headers)
    assert "'once'" in problem(other, 422).detail
    assert listed(client) == ["finish"]


RETRIED = [
    ("/api/runs", {}),
    ("/api/sweeps", {"grid": {"sae.k": [8]}}),
    ("/api/imports", {"path": "sae", "model": "tiny-gemma2", "layer": 1}),
]


@pytest.mark.parametrize(("route", "more"), RETRIED)
def test_a_retry_gets_its_answer_even_if_the_request_is_not_possible_any_more(
    client: TestClient, settings: Settings, route: str, more: dict[str, Any]
) -> None:
    text, sae = settings.data_dir / "text.txt", settings.data_dir / "sae"
    text.write_text("".join(f"line {n}\n\n" for n in range(100)))
    sae.mkdir()
    np.savez(sae / "params.npz", W_dec=np.zeros((4, 2), np.float32))
    config = {"data": {"dataset": "text.txt"}}
    body = {"preset": "quick-test", "name": "finish", "config": config, **more}
    headers = {"Idempotency-Key": "once"}
    first = client.post(route, json=body, headers=headers)
    assert first.status_code == 201, first.text
    text.unlink()
    shutil.rmtree(sae)
    again = client.post(route, json=body, headers=headers)
    assert again.status_code == 201, again.text
    assert again.json()["id"] == first.json()["id"]
    assert again.headers.get("location") == first.headers.get("location")
    assert (
        "'once'"
        in problem(client.post(route, json=body | {"name": "x"}, headers=headers), 422).detail
    )
    problem(client.post(route, json=body), 422)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            r'{"config": {"model": {"name": "\ud800"}}}',
            "is not text",
        ),
        (r'{"config": {"\udfff": 1}}', "'\\udfff' is not text"),
        (r'{"config": {"data": {"train_roles": ["\ud83d"]}}}', "data.train_roles"),
        (r'{"preset": "\ud800"}', "preset"),
    ],
    ids=["value", "field", "list", "preset"],
)
def test_half_a_surrogate_pair_is_named_where_it_is(
    client: TestClient, body: str, words: str
) -> None:
    headers = {"Content-Type": "application/json"}
    found = problem(client.post("/api/runs", content=body, headers=headers), 422)
    assert words in found.detail


@pytest.mark.parametrize("depth", [200, 900])
def test_a_deep_configuration_is_refused(client: TestClient, depth: int) -> None:
    body = '{"config": ' + depth * '{"a":' + "1" + (depth + 1) * "}"
    headers = {"Content-Type": "application/json"}
    answer = client.post("/api/runs", content=body, headers=headers)
    detail = problem(answer, 422).detail
    assert "a.a: Unknown setting" in detail or "nested too deeply" in detail


def test_pages_list_runs_newest_first(client: TestClient) -> None:
    for number in range(5):
        create(client, f"run {number}")
    names: list[str] = []
    cursor: str | None = None
    while True:
        query = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
        page = RunPage.model_validate_json(client.get("/api/runs", params=query).content)
        assert len(page.items) <= 2
        names += [run.name for run in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert names == [f"run {number}" for number in (4, 3, 2, 1, 0)]
    problem(client.get("/api/runs?cursor=x"), 422)
    problem(client.get("/api/runs?limit=0"), 422)
    problem(client.get("/api/runs?status=asleep"), 422)


def test_runs_are_filtered_by_status_text_tag_and_archive(
    client: TestClient, database: Database
) -> None:
    with database.writing() as session:
        for name, status, tags in [
            ("Apple", "finished", ["fruit"]),
            ("banana_1", "failed", ["fruit", 'with "quotes"']),
            ("carrot", "finished", []),
        ]:
            config = resolve_config("quick-test", {"name": name})
            store.add_run(session, config=config, status=status, tags=tags)  # pyright: ignore
    assert listed(client, status="finished") == ["carrot", "Apple"]
    assert listed(client, q="APP") == ["Apple"]
    assert listed(client, q="_") == ["banana_1"]
    assert listed(client, q="%") == []
    assert listed(client, tag="fruit") == ["banana_1", "Apple"]
    assert listed(client, tag='with "quotes"') == ["banana_1"]
    assert client.get("/api/runs?status=finished&status=failed").json()["items"][1]["id"]
    [run] = client.get("/api/runs?q=carrot").json()["items"]
    client.patch(f"/api/runs/{run['id']}", json={"archived": True})
    assert listed(client) == ["banana_1", "Apple"]
    assert listed(client, archived="true") == ["carrot"]


def test_a_patch_changes_only_the_fields_it_has(client: TestClient) -> None:
    run = create(client, "wait", tags=["x"], notes="old")
    client.patch(f"/api/runs/{run.id}", json={"name": "renamed", "tags": ["y", "x"]})
    patched = read(client, run.id)
    assert (patched.name, patched.config.name, patched.tags) == ("renamed", "renamed", ["y", "x"])
    assert (patched.notes, patched.archived) == ("old", False)
    problem(client.patch(f"/api/runs/{run.id}", json={"status": "finished"}), 422)
    problem(client.patch(f"/api/runs/{run.id}", json={"name": ""}), 422)


def test_a_running_run_cannot_be_deleted_and_an_ended_one_loses_its_folder(
    client: TestClient, settings: Settings
) -> None:
    run = create(client, "wait")
    wait_for_status(client, run.id, "running")
    refused = problem(client.delete(f"/api/runs/{run.id}"), 409)
    assert "stop it" in refused.detail
    folder = settings.run_folder(run.id).path
    assert folder.is_dir()
    client.post(f"/api/runs/{run.id}/stop")
    wait_for_status(client, run.id, "stopped")
    assert client.delete(f"/api/runs/{run.id}").status_code == 204
    assert not folder.exists()
    problem(client.get(f"/api/runs/{run.id}"), 404)


def test_presets_schema_health_and_system_answer(client: TestClient) -> None:
    assert client.get("/api/health").json()["status"] == "ok"
    presets = client.get("/api/config/presets").json()
    assert [preset["name"] for preset in presets][:2] == ["quick-test", "tiny"]
    schema = client.get("/api/config/schema").json()
    assert "total_tokens" in schema["$defs"]["TrainConfig"]["properties"]
    system = client.get("/api/system").json()
    assert system["num_cpus"] >= 1
    assert 0 < system["disk_free_bytes"] <= system["disk_total_bytes"]


def test_an_estimate_is_for_a_preset_with_overrides(client: TestClient) -> None:
    asked = {"preset": "tiny", "config": {"sae": {"d_sae": 1024}}}
    found = client.post("/api/config/estimate", json=asked).json()
    assert (found["d_in"], found["d_sae"]) == (192, 1024)
    assert found["parameters"] == 2 * 1024 * 192 + 1024 + 192
    assert found["memory_bytes"] == sum(part["bytes"] for part in found["memory"])
    refused = problem(client.post("/api/config/estimate", json={"preset": "huge"}), 422)
    assert "There is no preset 'huge'" in str(refused)
    too_sparse = {"config": {"sae": {"k": 4096}}}
    refused = problem(client.post("/api/config/estimate", json=too_sparse), 422)
    assert [error.field for error in refused.errors] == ["sae.k"]
    outside = {"config": {"model": {"name": "/etc"}}}
    problem(client.post("/api/config/estimate", json=outside), 422)


def test_operation_ids_are_function_names_and_unique(tmp_path: Path) -> None:
    paths = create_api(Settings(data_dir=tmp_path)).openapi()["paths"]
    names = [call["operationId"] for path in paths.values() for call in path.values()]
    assert len(names) == len(set(names))
    assert {"create_run", "get_metrics", "list_features", "lookup"} <= set(names)


def test_the_openapi_document_and_its_reference_are_under_api(client: TestClient) -> None:
    document = client.get("/api/openapi.json").json()
    assert document["servers"] == [{"url": "/api"}]
    assert "/api/openapi.json" in client.get("/api/docs").text


def test_every_failure_is_described_as_a_problem(client: TestClient) -> None:
    document = client.get("/api/openapi.json").json()
    described = [
        response["content"]
        for methods in document["paths"].values()
        for operation in methods.values()
        for status, response in operation["responses"].items()
        if int(status) >= 400
    ]
    schema = {"$ref": "#/components/schemas/Problem"}
    assert len(described) > 100
    assert all(content == {"application/problem+json": {"schema": schema}} for content in described)
    problem = document["components"]["schemas"]["Problem"]
    answer = client.get("/api/runs/none")
    assert set(problem["required"]) <= set(answer.json()) <= set(problem["properties"])
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("page", ["/api/docs", "/api/redoc"])
def test_the_reference_loads_nothing_from_other_hosts(client: TestClient, page: str) -> None:
    loaded = re.findall(r'<(?:script|link)[^>]*? (?:src|href)="([^"]+)"', client.get(page).text)
    assert any(url.endswith(".js") for url in loaded)
    for url in loaded:
        assert url.startswith("/api/")
        assert client.get(url).status_code == 200


def test_a_nul_character_is_stored_or_refused(client: TestClient) -> None:
    """SQLite stores it, PostgreSQL cannot."""
    body = {"preset": "quick-test", "name": "wait", "notes": "a\0b"}
    answer = client.post("/api/runs", json=body)
    if answer.status_code == 201:
        assert answer.json()["notes"] == "a\0b"
    else:
        assert "NUL" in problem(answer, 422).detail
    assert client.get("/api/runs", params={"q": "\0"}).status_code in (200, 422)
