"""The REST guide lists every existing call and no others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from backend.app import create_api, create_app
from backend.settings import Settings
from sae_engine.presets import resolve_config
from sae_engine.schema.runs import ImportCreate, RunCreate, RunPatch, SweepCreate
from tests.house.repository import ROOT

_GUIDE = (ROOT / "docs/rest.md").read_text("utf-8")


@pytest.fixture
def openapi(tmp_path: Path) -> dict[str, Any]:
    return create_api(Settings(data_dir=tmp_path)).openapi()


def test_the_table_of_calls_is_the_one_of_openapi(openapi: dict[str, Any]) -> None:
    table = set(re.findall(r"^\| ([A-Z]+) \| `(/[^`]+)` \|", _GUIDE, re.MULTILINE))
    calls = {
        (method.upper(), path) for path, methods in openapi["paths"].items() for method in methods
    }
    assert table == calls


def test_the_openapi_document_beside_the_guide_is_the_one_that_is_served(
    openapi: dict[str, Any],
) -> None:
    written = json.loads((ROOT / "docs/openapi.json").read_text("utf-8"))
    assert written == json.loads(json.dumps(openapi)), (
        "renew it: .venv/bin/python -m backend.openapi > docs/openapi.json"
    )


def test_every_example_request_is_valid(openapi: dict[str, Any]) -> None:
    for shape in (RunCreate, SweepCreate, ImportCreate, RunPatch):
        for example in openapi["components"]["schemas"][shape.__name__]["examples"]:
            body = shape.model_validate(example)
            if isinstance(body, RunCreate):
                resolve_config(body.preset, body.config)


def test_every_query_parameter_that_is_shown_exists(openapi: dict[str, Any]) -> None:
    known = {
        parameter["name"]
        for methods in openapi["paths"].values()
        for call in methods.values()
        for parameter in call.get("parameters", [])
        if parameter["in"] == "query"
    }
    queries = re.findall(r"\?([\w=&,]+)", _GUIDE)
    shown = {pair.partition("=")[0] for query in queries for pair in query.split("&")}
    assert shown - known == set()


def test_the_error_that_is_shown_is_the_one_that_is_sent(tmp_path: Path) -> None:

    request = re.findall(r"^\$ curl .*-d '(\{.*\})'$", _GUIDE, re.MULTILINE)[0]
    shown = re.findall(r"```json\n(.*?)```", _GUIDE, re.DOTALL)[0]
    with TestClient(create_app(Settings(data_dir=tmp_path)), "http://127.0.0.1") as client:
        answer = client.post("/api/runs", json=json.loads(request))
    assert answer.json() == json.loads(shown)
