"""A finished run whose features a language model on the loopback can label."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from backend import store
from backend.settings import Settings
from backend.store.database import Database
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.presets import resolve_config
from sae_engine.schema.labels import FeatureLabel, LabelJob
from sae_engine.schema.records import SnapshotRecord
from tests.backend.conftest import wait_for
from tests.backend.fake_endpoint import (
    KEY,
    MODEL,
    Endpoint,
    endpoint,
)
from tests.sae_engine.features.index_reference import build, random_case


@pytest.fixture
def served() -> Iterator[Endpoint]:
    with endpoint() as state:
        yield state


@pytest.fixture
def settings(tmp_path: Path, served: Endpoint, database_url: str | None) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        database_url=database_url,
        labels_base_url=served.url,
        labels_model=MODEL,
        labels_api_key=SecretStr(KEY),
        labels_concurrency=3,
    )


@pytest.fixture(scope="module")
def index_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    case = random_case(3, num_tokens=6000, k=2, d_sae=300, ids=range(60, 250), num_rows=40)
    return build(tmp_path_factory.mktemp("index"), case, step=7)


@pytest.fixture
def run_id(settings: Settings, database: Database, index_folder: Path) -> str:
    with database.writing() as session:
        config = resolve_config("quick-test", {"name": "indexed"})
        run_id = store.add_run(session, config=config, status="finished").id
        record = SnapshotRecord(step=7, tokens=1000, index_tokens=6000, seconds=0.1, final=True)
        store.add_snapshot(session, run_id, record)
    folder = settings.run_folder(run_id)
    folder.features.mkdir(parents=True)
    folder.feature_index(7).symlink_to(index_folder)
    return run_id


@pytest.fixture
def index(index_folder: Path) -> FeatureIndex:
    return FeatureIndex.open(index_folder)


def some_features(index: FeatureIndex, number: int) -> list[int]:
    """Features that fire often enough for a score."""
    page = index.features(sort="density", limit=120 + number)
    return [row.index for row in page.items[120:]]


def start(client: TestClient, run_id: str, **body: Any) -> LabelJob:
    answer = client.post(f"/api/runs/{run_id}/labels", json=body)
    assert answer.status_code == 202, answer.text
    return LabelJob.model_validate_json(answer.content)


def newest_job(client: TestClient, run_id: str) -> LabelJob:
    return LabelJob.model_validate(client.get(f"/api/runs/{run_id}/labels/jobs").json()[0])


def wait_for_end(client: TestClient, run_id: str) -> LabelJob:
    wait_for(lambda: newest_job(client, run_id).status != "running")
    return newest_job(client, run_id)


def label(client: TestClient, run_id: str, feature: int) -> FeatureLabel:
    (written,) = client.get(f"/api/runs/{run_id}/labels", params={"feature": feature}).json()
    return FeatureLabel.model_validate(written)


def put(client: TestClient, run_id: str, feature: int, text: str, **more: Any) -> None:
    path = f"/api/runs/{run_id}/features/{feature}/label"
    assert client.put(path, json={"label": text, **more}).status_code == 200
