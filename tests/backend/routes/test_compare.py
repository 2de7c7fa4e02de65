"""Densities, maps and comparisons over REST, computed by the real worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from starlette.testclient import TestClient

from backend import store
from backend.app import create_app
from backend.settings import Settings
from backend.store.database import Database
from sae_engine.presets import resolve_config
from sae_engine.schema.analysis import (
    AnalysisProgress,
    Comparison,
    DensityHistogram,
    FeatureComparison,
    FeatureMap,
)
from sae_engine.schema.records import MetricsRecord, SnapshotRecord
from tests.backend.conftest import URL, wait_for
from tests.backend.fake_engine import fake_job
from tests.sae_engine.features.index_reference import build, random_case

D_SAE = 18  # so few live features need no UMAP, which is tested with the engine


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(data_dir=tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings, command=fake_job), URL) as client:
        yield client


@pytest.fixture(scope="module")
def rows() -> dict[str, torch.Tensor]:
    """Decoders: `b` has the rows of `a` in reverse order, the last third replaced by others."""
    a = torch.randn(D_SAE, 6, generator=torch.Generator().manual_seed(1))
    b = a.flip(0).clone()
    b[-6:] = torch.randn(6, 6, generator=torch.Generator().manual_seed(2))
    return {"a": a, "b": b, "wide": torch.randn(D_SAE, 8)}


@pytest.fixture(scope="module")
def runs(settings: Settings, client: TestClient, rows: dict[str, torch.Tensor]) -> dict[str, str]:
    """Ids of finished runs: `a` and `b` differ in k and learning rate, `wide` in d_in, `other` in
    the language model, `bare` has no features.
    """
    config = {
        "a": {"sae": {"k": 8}},
        "b": {"sae": {"k": 4}, "train": {"lr": 0.01}},
        "wide": {},
        "other": {"model": {"name": "some-model"}},
        "bare": {},
    }
    ids: dict[str, str] = {}
    database = Database(settings.resolved_database_url)
    with database.writing() as session:
        for seed, (name, overrides) in enumerate(config.items()):
            resolved = resolve_config("quick-test", overrides | {"name": name})
            ids[name] = store.add_run(session, config=resolved, status="finished").id
            measured = MetricsRecord(step=5, tokens=50, time=1.0, values={"fvu": 0.1 * seed})
            store.add_metrics(session, ids[name], [measured])
            if name != "bare":
                publish(settings.run_folder(ids[name]).path, seed, rows.get(name, rows["a"]))
                record = SnapshotRecord(
                    step=7, tokens=1000, index_tokens=200, seconds=0.1, final=True
                )
                store.add_snapshot(session, ids[name], record)
    database.close()
    return ids


def publish(folder: Path, seed: int, rows: torch.Tensor) -> None:
    case = random_case(seed, d_sae=D_SAE)
    build(folder, case, W_dec=rows, write_sae=lambda path: save_file({"W_dec": rows}, path))


def when_ready(client: TestClient, path: str, **query: str | int | float) -> httpx.Response:
    """The first answer that is not 202."""
    answers: list[httpx.Response] = []

    def ask() -> bool:
        answers.append(client.get(f"/api{path}", params=query))
        if answers[-1].status_code == 202:
            AnalysisProgress.model_validate_json(answers[-1].content)
            assert answers[-1].headers["retry-after"] == "1"
        return answers[-1].status_code != 202

    wait_for(ask)
    return answers[-1]


def test_densities_agree_with_the_feature_list(client: TestClient, runs: dict[str, str]) -> None:
    answer = client.get(f"/api/runs/{runs['a']}/densities")
    found = DensityHistogram.model_validate_json(answer.content)
    assert found.snapshot == 7
    listed = client.get(f"/api/runs/{runs['a']}/features?state=dead").json()
    assert found.num_dead == listed["total"]
    assert sum(found.counts) == D_SAE - found.num_dead
    assert client.get(f"/api/runs/{runs['bare']}/densities").status_code == 409
    assert client.get(f"/api/runs/{runs['a']}/densities?snapshot=3").status_code == 404


def test_a_map_is_computed_once_and_shows_labels_written_later(
    client: TestClient, settings: Settings, runs: dict[str, str]
) -> None:
    assert client.get(f"/api/runs/{runs['a']}/map").status_code == 202
    found = FeatureMap.model_validate_json(when_ready(client, f"/runs/{runs['a']}/map").content)
    assert len(found.index) == D_SAE - found.num_dead
    [folder] = (settings.data_dir / "analyses").glob(f"map*_{runs['a']}*")
    label = f"/api/runs/{runs['a']}/features/{found.index[0]}/label"
    client.put(label, json={"label": "first"})
    again = client.get(f"/api/runs/{runs['a']}/map")
    assert again.status_code == 200
    shown = FeatureMap.model_validate_json(again.content)
    assert shown.labels == {found.index[0]: "first"}
    assert (shown.x, shown.y) == (found.x, found.y)
    np.testing.assert_allclose(np.load(folder / "points.npy")[:, 0], found.x, atol=6e-4)


def test_best_values_are_exact_for_downsampled_curves(
    client: TestClient, settings: Settings, runs: dict[str, str]
) -> None:
    random = np.random.default_rng(3)
    names = ("fvu", "ce_loss_score", "lr")
    steps = range(1, 901)
    values = {name: random.normal(size=len(steps)) for name in names}
    values["fvu"][100] = -np.inf
    measured = [
        MetricsRecord(step=s, tokens=s, time=s, values={n: v[s - 1] for n, v in values.items()})
        for s in steps
    ]
    with Database(settings.resolved_database_url).writing() as session:
        config = resolve_config("quick-test", {"name": "long"})
        run_id = store.add_run(session, config=config, status="finished").id
        store.add_metrics(session, run_id, measured)
    answer = client.get(
        "/api/compare", params={"runs": f"{run_id},{runs['bare']}", "max_points": 20}
    )
    long, bare = Comparison.model_validate_json(answer.content).best
    values["fvu"][100] = np.inf
    lowest, highest = values["fvu"].argmin(), values["ce_loss_score"].argmax()
    assert {name: (best.value, best.step) for name, best in long.items()} == {
        "fvu": (values["fvu"][lowest], lowest + 1),
        "ce_loss_score": (values["ce_loss_score"][highest], highest + 1),
    }
    assert bare["fvu"].step == 5


def test_a_comparison_has_differing_settings_and_both_curves(
    client: TestClient, runs: dict[str, str]
) -> None:
    answer = client.get("/api/compare", params={"runs": f"{runs['a']},{runs['b']}"})
    found = Comparison.model_validate_json(answer.content)
    assert [run.name for run in found.runs] == ["a", "b"]
    assert {d.field: d.values for d in found.differences} == {
        "sae.k": [8, 4],
        "train.lr": [found.runs[0].config.train.lr, 0.01],
    }
    assert [curve.series["fvu"] for curve in found.curves] == [[0.0], [0.1]]
    assert found.obstacle is None


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("wide", "width 6 and 'wide' of width 8"),
        ("other", "'other' reads some-model"),
        ("bare", "'bare' has no features"),
    ],
)
def test_runs_without_comparable_features_are_compared_with_an_obstacle(
    client: TestClient, runs: dict[str, str], other: str, words: str
) -> None:
    query = {"runs": f"{runs['a']},{runs[other]}"}
    answer = client.get("/api/compare", params=query)
    found = Comparison.model_validate_json(answer.content)
    assert words in (found.obstacle or "")
    assert found.differences
    refused = client.get("/api/compare/features", params=query)
    assert (refused.status_code, words in refused.json()["detail"]) == (409, True)


@pytest.mark.parametrize("file", ["indices.npy", "sae.safetensors"])
def test_a_damaged_index_is_named_and_the_rest_is_compared(
    client: TestClient, settings: Settings, database: Database, runs: dict[str, str], file: str
) -> None:
    with database.writing() as session:
        config = resolve_config("quick-test", {"name": "damaged", "sae": {"k": 2}})
        run_id = store.add_run(session, config=config, status="finished").id
        record = SnapshotRecord(step=7, tokens=9, index_tokens=200, seconds=0.1, final=True)
        store.add_snapshot(session, run_id, record)
    publish(settings.run_folder(run_id).path, 1, torch.randn(D_SAE, 6))
    damaged = settings.run_folder(run_id).feature_index(7) / file
    content = damaged.read_bytes()
    damaged.write_bytes(bytes(len(content)) if file == "sae.safetensors" else content[:-8])

    query = {"runs": f"{runs['a']},{run_id}"}
    answer = client.get("/api/compare", params=query)
    assert answer.status_code == 200
    found = Comparison.model_validate_json(answer.content)
    assert str(damaged) in (found.obstacle or "")
    assert "sae.k" in {difference.field for difference in found.differences}
    assert [curve.series.get("fvu") for curve in found.curves] == [[0.0], None]
    refused = client.get("/api/compare/features", params=query)
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:sae-workbench:index-damaged")
    assert str(damaged) in refused.json()["detail"]


def test_features_are_matched_in_either_order_of_runs(
    client: TestClient, settings: Settings, runs: dict[str, str], rows: dict[str, torch.Tensor]
) -> None:
    a, b = runs["a"], runs["b"]
    answer = when_ready(client, "/compare/features", runs=f"{a},{b}", threshold=0.999, limit=500)
    found = FeatureComparison.model_validate_json(answer.content)
    assert found.items
    for item in found.items:
        assert item.mutual
        assert item.b.index == D_SAE - 1 - item.a.index
        assert item.cosine == pytest.approx(1, abs=1e-5)
    turned = client.get(
        "/api/compare/features", params={"runs": f"{b},{a}", "threshold": 0.999, "limit": 500}
    )
    assert turned.status_code == 200, "one computation serves both directions"
    back = FeatureComparison.model_validate_json(turned.content)
    pairs = {(item.a.index, item.b.index) for item in found.items}
    assert {(item.b.index, item.a.index) for item in back.items} == pairs
    assert (back.num_only_a, back.num_only_b) == (found.num_only_b, found.num_only_a)
    assert back.counts_a == found.counts_b
    assert len(list((settings.data_dir / "analyses").glob("matches*"))) == 1


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("runs=one", "names 1; give two to 8"),
        ("runs=" + ",".join("abcdefghi"), "names 9"),
        ("", "runs: It is required"),
    ],
)
def test_fewer_than_two_and_more_than_eight_runs_are_refused(
    client: TestClient, query: str, words: str
) -> None:
    for path in ("compare", "compare/features"):
        answer = client.get(f"/api/{path}?{query}")
        assert answer.status_code == 422
        assert words in answer.json()["detail"]


def test_three_runs_are_compared_without_matching_features(
    client: TestClient, runs: dict[str, str]
) -> None:
    query = {"runs": ",".join(runs[name] for name in ("a", "b", "bare"))}
    answer = client.get("/api/compare", params=query)
    assert [len(d["values"]) for d in answer.json()["differences"]] == [3, 3]
    refused = client.get("/api/compare/features", params=query)
    assert (refused.status_code, "3 runs" in refused.json()["detail"]) == (422, True)
    assert client.get(f"/api/compare?runs={runs['a']},nobody").status_code == 404


def test_an_unreadable_sae_is_named_and_asking_again_restarts_the_analysis(
    client: TestClient, settings: Settings, database: Database
) -> None:
    with database.writing() as session:
        config = resolve_config("quick-test", {})
        run_id = store.add_run(session, config=config, status="finished").id
        build(settings.run_folder(run_id).path, random_case(1, d_sae=D_SAE))  # no real weights
        record = SnapshotRecord(step=7, tokens=9, index_tokens=200, seconds=0.1, final=True)
        store.add_snapshot(session, run_id, record)
    refused = when_ready(client, f"/runs/{run_id}/map")
    assert refused.status_code == 409
    assert "sae.safetensors' is not an SAE" in refused.json()["detail"]
    assert client.get(f"/api/runs/{run_id}/map").status_code == 202
    assert client.delete(f"/api/runs/{run_id}").status_code == 204
    assert not list((settings.data_dir / "analyses").glob(f"*{run_id}*"))


def test_deleting_a_run_deletes_its_matches(
    client: TestClient, settings: Settings, runs: dict[str, str]
) -> None:
    folder = settings.data_dir / "analyses"
    query = f"runs={runs['a']},{runs['b']}"
    when_ready(client, f"/compare/features?{query}")
    assert client.delete(f"/api/runs/{runs['b']}").status_code == 204
    assert not list(folder.glob("matches*"))
