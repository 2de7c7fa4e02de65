"""Exports in every format: zips over REST, folders on the command line."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from backend.cli.main import main
from backend.errors import NotFoundError
from backend.http.exports import MOST_KEPT, Exports
from backend.settings import Settings
from backend.store.database import Database
from sae_engine.schema.exports import ExportProgress
from tests.backend.indexed import add_indexed_run

FILES = {
    "html": "index.html",
    "jsonl": "features.jsonl",
    "neuronpedia": "features/batch-0.jsonl.gz",
    "parquet": "token_statistics.parquet",
}


@pytest.fixture
def run_id(settings: Settings, database: Database) -> str:
    return add_indexed_run(settings, database)


def ask(client: TestClient, run_id: str, **query: object) -> zipfile.ZipFile:
    answer = client.get(f"/api/runs/{run_id}/export", params=query)  # pyright: ignore[reportArgumentType]
    assert answer.status_code == 200, answer.text
    return zipfile.ZipFile(io.BytesIO(answer.content))


@pytest.mark.parametrize("format", FILES)
def test_rest_and_command_line_write_the_same_files(
    client: TestClient,
    settings: Settings,
    run_id: str,
    tmp_path: Path,
    format: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    archive = ask(client, run_id, format=format)
    archive.extractall(tmp_path / "zip")
    assert not list(settings.data_dir.glob(".export-*"))
    options = ["--format", format, "--data-dir", str(settings.data_dir)]
    assert main(["export", "indexed", str(tmp_path / "shell"), *options]) == 0
    assert "features never fired" in capsys.readouterr().out
    [unzipped] = (tmp_path / "zip").iterdir()
    assert unzipped.name == f"indexed-step7-{format}"
    names = {path.relative_to(unzipped) for path in unzipped.rglob("*") if path.is_file()}
    assert Path(FILES[format]) in names
    for name in names:
        if name.suffix != ".gz":  # holds the time at which it was written
            assert (unzipped / name).read_bytes() == (tmp_path / "shell" / name).read_bytes()


def test_exported_pages_have_the_style_sheet_of_the_app(client: TestClient, run_id: str) -> None:
    archive = ask(client, run_id, format="html")
    style = archive.read("indexed-step7-html/style.css").decode()
    assert style == (Path(__file__).parents[3] / "frontend/style.css").read_text("utf-8")


def test_peoples_labels_are_exported(client: TestClient, run_id: str) -> None:
    written = {"label": "names", "notes": "after import", "starred": True}
    client.put(f"/api/runs/{run_id}/features/4/label", json=written)
    archive = ask(client, run_id, format="jsonl", snapshot=3)
    rows = map(json.loads, archive.read("indexed-step3-jsonl/features.jsonl").splitlines())
    explanations = {row["index"]: row["explanations"] for row in rows if row["explanations"]}
    assert list(explanations) == ["4"]
    assert explanations["4"][0]["description"] == "names"
    exported = ask(client, run_id, format="parquet").read("indexed-step7-parquet/features.parquet")
    table = pd.read_parquet(io.BytesIO(exported)).set_index("feature")
    assert table.loc[4, ["label", "notes", "label_author"]].tolist() == [
        "names",
        "after import",
        "person",
    ]


def test_a_second_export_at_the_same_time_is_refused(client: TestClient, run_id: str) -> None:
    app = client.app
    assert isinstance(app, Starlette)
    [mount] = app.routes
    assert isinstance(mount, Mount)
    api = mount.app.app  # pyright: ignore[reportFunctionMemberAccess] - behind its limits
    assert isinstance(api, FastAPI)
    with api.state.services.exporting:
        answer = client.get(f"/api/runs/{run_id}/export?format=html")
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:sae-workbench:exporting")
    ask(client, run_id, format="html")


def test_an_export_without_its_run_or_snapshot_is_refused(
    client: TestClient, settings: Settings, run_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = client.get(f"/api/runs/{run_id}/export?format=html&snapshot=4")
    assert (missing.status_code, "it has 3, 7" in missing.json()["detail"]) == (404, True)
    assert client.get("/api/runs/nobody/export?format=html").status_code == 404
    assert not list(settings.data_dir.glob(".export-*"))
    options = ["--format", "html", "--snapshot", "4", "--data-dir", str(settings.data_dir)]
    assert main(["export", run_id, str(settings.data_dir / "out"), *options]) == 2
    assert "it has 3, 7" in capsys.readouterr().err


def test_the_file_is_named_after_the_run_the_step_and_the_format(
    client: TestClient, run_id: str
) -> None:
    client.patch(f"/api/runs/{run_id}", json={"name": 'k=8 "ž"/../x\r\n'})
    answer = client.get(f"/api/runs/{run_id}/export?format=jsonl&snapshot=3")
    name = 'attachment; filename="k=8-..-x-step3-jsonl.zip"'
    assert answer.headers["content-disposition"] == name


def test_an_export_that_names_itself_can_be_followed(client: TestClient, run_id: str) -> None:
    assert client.get("/api/exports/mine").status_code == 404
    ask(client, run_id, format="html", request="mine")
    assert client.get("/api/exports/mine").json() == {
        "state": "done",
        "phase": "downloading",
        "fraction": 1.0,
        "file": "indexed-step7-html.zip",
        "detail": None,
    }
    client.get(f"/api/runs/{run_id}/export?format=html&snapshot=4&request=other")
    failed = client.get("/api/exports/other").json()
    assert (failed["state"], "it has 3, 7" in failed["detail"]) == ("failed", True)


def test_progress_is_the_share_of_the_features_that_are_written_and_few_are_kept() -> None:
    exports = Exports()
    for number in range(MOST_KEPT + 1):
        exports.report(str(number), ExportProgress(state="running", phase="writing"))
    exports.report(None, ExportProgress(state="running", phase="unnamed"))
    with pytest.raises(NotFoundError):
        exports.of("0")
    assert exports.of("1").phase == "writing"
