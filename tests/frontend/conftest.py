"""The real API on a free port of the loopback, and the pages run against it without a browser."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from fastapi import FastAPI
from streamlit.testing.v1 import AppTest

from backend.app import create_api
from backend.playground.client import PlaygroundClient
from backend.settings import Settings
from frontend.api import cache as pages_server
from tests.frontend.fake_model import FAKE_MODEL
from tests.frontend.indexes import build_indexes, publish_analyses
from tests.frontend.seeding import seed
from tests.frontend.workbench import Workbench

APP = Path(__file__).parents[2] / "frontend" / "app.py"


class SharedModel(PlaygroundClient):
    """A process that outlives the servers that ask it."""

    def close(self) -> None:
        """Do nothing: the session ends the process."""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaygroundClient]:
    """The playground's language model, one for all tests."""
    model = SharedModel(Settings(data_dir=tmp_path_factory.mktemp("model")), FAKE_MODEL)
    yield model
    PlaygroundClient.close(model)


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """The endpoints, whose first requests are slow; each test gives them services of its own."""
    return create_api(Settings(data_dir=tmp_path_factory.mktemp("unused")))


@pytest.fixture(scope="session")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the feature indexes that all tests read."""
    folder = tmp_path_factory.mktemp("indexes")
    build_indexes(folder)
    return folder


@pytest.fixture(scope="session")
def seeded_data_dir(tmp_path_factory: pytest.TempPathFactory, indexes: Path) -> Path:
    """The data folder that each test gets a copy of."""
    data_dir = tmp_path_factory.mktemp("seeded") / "data"
    seed(Settings(data_dir=data_dir), indexes)
    publish_analyses(data_dir / "analyses", indexes)
    return data_dir


@pytest.fixture
def changed_settings() -> dict[str, Any]:
    """Settings of the server that differ from the usual ones; tests and modules override it."""
    return {}


@pytest.fixture
def workbench(
    api: FastAPI,
    tmp_path: Path,
    seeded_data_dir: Path,
    indexes: Path,
    model: PlaygroundClient,
    changed_settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Workbench]:
    """The API over a copy of the data folder; the pages find it through the environment."""
    shutil.copytree(seeded_data_dir, tmp_path / "data", symlinks=True)
    usual = {"data_dir": tmp_path / "data", "devices": ["cuda:0", "cpu"]}
    workbench = Workbench(api, Settings(**usual | changed_settings), model, indexes)
    with workbench.serving():
        monkeypatch.setenv("SAE_WORKBENCH_API_URL", workbench.url)
        st.cache_data.clear()
        st.cache_resource.clear()
        yield workbench
        pages_server.client().close()
        st.cache_resource.clear()


@pytest.fixture
def open_page(workbench: Workbench) -> Callable[..., AppTest]:
    """Open a page by its file's name with the values of its URL."""

    def open_it(page: str, **query: str) -> AppTest:
        app = AppTest.from_file(str(APP), default_timeout=60)
        if page != "runs":
            app.switch_page(f"views/{page}.py")
        for name, value in query.items():
            app.query_params[name] = value
        return app.run()

    return open_it
