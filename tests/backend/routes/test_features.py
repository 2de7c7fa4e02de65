"""Snapshots, features, labels and lookups over REST, on a real index."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from starlette.testclient import TestClient

from backend import store
from backend.cli.main import main
from backend.http.services import IndexCache
from backend.settings import Settings
from backend.store.database import Database
from sae_engine.features.index.format import MANIFEST, SAE, IndexDamagedError
from sae_engine.presets import resolve_config
from sae_engine.schema.features import FeatureDetail, FeatureHistory, FeaturePage
from sae_engine.schema.lookup import LookupResult
from tests.backend.indexed import D_SAE, add_indexed_run
from tests.sae_engine.features.index_reference import build, byte_level_tokenizer, random_case


@pytest.fixture
def run_id(settings: Settings, database: Database) -> str:
    return add_indexed_run(settings, database)


def test_the_newest_snapshot_answers_by_default(client: TestClient, run_id: str) -> None:
    snapshots = client.get(f"/api/runs/{run_id}/snapshots").json()
    assert [snapshot["step"] for snapshot in snapshots] == [3, 7]
    for query, step in [("", 7), ("?snapshot=3", 3)]:
        page = client.get(f"/api/runs/{run_id}/features{query}")
        assert FeaturePage.model_validate_json(page.content).snapshot == step
        detail = client.get(f"/api/runs/{run_id}/features/1{query}")
        assert FeatureDetail.model_validate_json(detail.content).snapshot == step
    missing = client.get(f"/api/runs/{run_id}/features?snapshot=4")
    assert (missing.status_code, "it has 3, 7" in missing.json()["detail"]) == (404, True)


def test_pages_list_every_feature_once(client: TestClient, run_id: str) -> None:
    seen: list[int] = []
    cursor: str | None = None
    while True:
        query = {"limit": "7", "sort": "index", "order": "asc"} | (
            {"cursor": cursor} if cursor else {}
        )
        answer = client.get(f"/api/runs/{run_id}/features", params=query)
        page = FeaturePage.model_validate_json(answer.content)
        seen += [feature.index for feature in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == list(range(D_SAE))
    assert page.total == D_SAE
    assert client.get(f"/api/runs/{run_id}/features?cursor=nonsense").status_code == 422


def test_a_label_is_stored_shown_found_and_removed(client: TestClient, run_id: str) -> None:
    written = {"label": "names of modules", "notes": "after import", "starred": True}
    put = client.put(f"/api/runs/{run_id}/features/4/label", json=written)
    assert (put.status_code, put.json()) == (200, written)
    detail = client.get(f"/api/runs/{run_id}/features/4?snapshot=3").json()
    assert {name: detail[name] for name in written} == written
    found = client.get(f"/api/runs/{run_id}/features?q=MODULES").json()
    assert [feature["index"] for feature in found["items"]] == [4]
    client.put(f"/api/runs/{run_id}/features/4/label", json={})
    detail = client.get(f"/api/runs/{run_id}/features/4").json()
    assert (detail["label"], detail["notes"], detail["starred"]) == (None, "", False)


def test_an_unknown_feature_is_not_found_and_cannot_be_labeled(
    client: TestClient, run_id: str
) -> None:
    for answer in (
        client.get(f"/api/runs/{run_id}/features/{D_SAE}"),
        client.put(f"/api/runs/{run_id}/features/{D_SAE}/label", json={"label": "x"}),
    ):
        assert answer.status_code == 404
        assert "features 0 to 29" in answer.json()["detail"]
    assert client.get(f"/api/runs/{run_id}/features/-1").status_code == 422


def test_lookup_is_the_same_over_rest_and_on_the_command_line(
    client: TestClient,
    settings: Settings,
    run_id: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    token = byte_level_tokenizer().decode([5])
    query = {"text": token, "min_count": "1", "match": "exact"}
    answer = client.get(f"/api/runs/{run_id}/lookup", params=query)
    result = LookupResult.model_validate_json(answer.content)
    assert result.features
    assert result.snapshot == 7
    options = ["--min-count", "1", "--match", "exact", "--data-dir", str(settings.data_dir)]
    assert main(["lookup", "indexed", token, *options]) == 0
    printed = capsys.readouterr().out
    for feature in result.features:
        assert str(feature.index) in printed
    assert main(["lookup", run_id, "x", "--snapshot", "4", *options]) == 2
    assert "it has 3, 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"text": "$", "match": "text"}, 200),
        ({"text": "AT", "match": "text", "exact_case": "true"}, 200),
        ({"text": "[$-&]+", "match": "regex"}, 200),
        ({"text": "(", "match": "regex"}, 422),
        ({"text": r"(a)\1", "match": "regex"}, 422),
    ],
)
def test_text_and_expressions_are_looked_up_over_rest_and_on_the_command_line(
    client: TestClient,
    settings: Settings,
    run_id: str,
    capsys: pytest.CaptureFixture[str],
    query: dict[str, str],
    status: int,
) -> None:
    answer = client.get(f"/api/runs/{run_id}/lookup", params={**query, "min_count": "1"})
    assert answer.status_code == status
    options = ["--match", query["match"], *(["--exact-case"] if "exact_case" in query else [])]
    command = ["lookup", "indexed", query["text"], *options, "--data-dir", str(settings.data_dir)]
    assert main(command) == (0 if status == 200 else 2)
    printed = capsys.readouterr()
    if status == 422:
        assert answer.json()["detail"] in printed.err
        return
    result = LookupResult.model_validate_json(answer.content)
    assert result.phrase
    assert result.occurrences is not None
    assert len(result.places) == min(5, result.count)
    assert ("ending in" in printed.out) == bool(result.count)


def test_before_the_first_snapshot_the_error_says_when_features_appear(
    client: TestClient, database: Database
) -> None:
    with database.writing() as session:
        config = resolve_config("quick-test", {})
        run_id = store.add_run(session, config=config, status="stopped").id
    answer = client.get(f"/api/runs/{run_id}/features")
    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:sae-workbench:no-features"
    assert "first snapshot" in answer.json()["detail"]


def test_a_damaged_index_is_named_and_other_snapshots_work(
    client: TestClient, settings: Settings, run_id: str
) -> None:
    folder = settings.run_folder(run_id).feature_index(7)
    damaged = sorted(folder.glob("*.npy"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-8])
    answer = client.get(f"/api/runs/{run_id}/features")
    assert answer.status_code == 409
    assert damaged.name in answer.json()["detail"]
    shutil.rmtree(folder)
    assert client.get(f"/api/runs/{run_id}/features/1").status_code == 409
    assert client.get(f"/api/runs/{run_id}/features?snapshot=3").status_code == 200


def test_an_open_index_is_reused_until_its_folder_is_replaced(tmp_path: Path) -> None:
    cache = IndexCache(capacity=2)
    folders = [build(tmp_path, random_case(step), step=step) for step in (1, 2, 3)]
    first = cache.get(folders[0])
    assert cache.get(folders[0]) is first
    build(tmp_path, random_case(9, d_sae=40), step=1)
    replaced = cache.get(folders[0])
    assert replaced.d_sae == 40
    cache.get(folders[1])
    cache.get(folders[2])
    assert cache.get(folders[0]) is not replaced


def test_a_repaired_index_is_opened_again(tmp_path: Path) -> None:
    cache = IndexCache()
    folder = build(tmp_path, random_case(1), step=1)
    first = cache.get(folder)
    file = folder / "token_ids.npy"
    content = file.read_bytes()
    file.write_bytes(content[:-8])
    with pytest.raises(IndexDamagedError, match="token_ids"):
        cache.get(folder)
    repaired = tmp_path / "repaired"
    repaired.write_bytes(content)
    repaired.rename(file)
    assert cache.get(folder) is not first


def write_decoder(folder: Path, W_dec: np.ndarray) -> None:
    save_file({"W_dec": W_dec}, folder / SAE)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["files"][SAE]["bytes"] = (folder / SAE).stat().st_size
    (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")


def test_a_history_has_density_and_direction_at_every_snapshot(
    client: TestClient, settings: Settings, run_id: str
) -> None:
    rows = {3: np.eye(D_SAE, 4, dtype=np.float32), 7: np.eye(D_SAE, 4, dtype=np.float32)}
    rows[3][0] = [1, 1, 0, 0]
    for step, W_dec in rows.items():
        write_decoder(settings.run_folder(run_id).feature_index(step), W_dec)
    answer = client.get(f"/api/runs/{run_id}/features/0/history")
    history = FeatureHistory.model_validate_json(answer.content)
    assert [moment.step for moment in history.moments] == [3, 7]
    assert [m.decoder_cosine for m in history.moments] == pytest.approx([0.5**0.5, 1.0])
    for moment in history.moments:
        then = client.get(f"/api/runs/{run_id}/features/0?snapshot={moment.step}").json()
        assert moment.density.model_dump() == then["density"]
        assert moment.max_activation == then["max_activation"]
    missing = client.get(f"/api/runs/{run_id}/features/{D_SAE}/history")
    assert missing.status_code == 404


def test_a_history_with_a_damaged_sae_names_it(client: TestClient, run_id: str) -> None:
    answer = client.get(f"/api/runs/{run_id}/features/0/history")  # they hold b"weights"
    assert (answer.status_code, answer.json()["type"]) == (
        409,
        "urn:sae-workbench:index-damaged",
    )
    assert "sae.safetensors" in answer.json()["detail"]


@pytest.mark.parametrize("lost", [3, 7])
@pytest.mark.parametrize("damage", [shutil.rmtree, lambda folder: (folder / SAE).write_bytes(b"")])
def test_a_lost_snapshot_is_left_out_of_the_history_and_named(
    client: TestClient, settings: Settings, run_id: str, lost: int, damage
) -> None:
    for step in (3, 7):
        folder = settings.run_folder(run_id).feature_index(step)
        write_decoder(folder, np.eye(D_SAE, 4, dtype=np.float32))
    damage(settings.run_folder(run_id).feature_index(lost))
    answer = client.get(f"/api/runs/{run_id}/features/0/history")
    assert answer.status_code == 200, answer.text
    history = FeatureHistory.model_validate_json(answer.content)
    assert [moment.step for moment in history.moments] == [10 - lost]
    assert history.missing_steps == [lost]
