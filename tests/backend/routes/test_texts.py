"""Texts that cannot be used are refused before a run is queued, in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from starlette.testclient import TestClient

from backend.settings import Settings
from tests.backend.routes.test_runs import create, problem

GOOD = "".join(json.dumps({"text": f"document {n}"}) + "\n" for n in range(50))


def damaged_parquet() -> bytes:
    buffer = pa.BufferOutputStream()
    texts = [f"document {n} " * 30 for n in range(50)]
    parquet.write_table(pa.table({"text": texts}), buffer, compression="gzip")
    data = bytearray(buffer.getvalue().to_pybytes())
    data[60:160] = bytes(100)
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.parquet", damaged_parquet, "cannot be read as Parquet"),
        ("a.jsonl.gz", lambda: b"\x1f\x8b\x08\x00 cut", "is damaged or cut off"),
        ("a.jsonl", lambda: b'{"text": 1}\n' * 3, "Column 'text' holds int, not text"),
        ("a.jsonl", lambda: b"[" * 100_000 + b"\n", "is nested too deeply"),
        ("a.jsonl", lambda: b'{"id": ' + b"9" * 5_000 + b"}\n", "There is no column 'text'"),
        ("a.txt", lambda: bytes(range(256)) * 40, "is not text in a known encoding"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused_by_name(
    client: TestClient, settings: Settings, name: str, content: Callable[[], bytes], words: str
) -> None:
    path = settings.data_dir / name
    path.write_bytes(content())
    body = {"preset": "quick-test", "config": {"data": {"dataset": str(path)}}}
    for route in ("/api/runs", "/api/config/estimate"):
        refused = problem(client.post(route, json=body), 422)
        assert words in refused.detail
        assert refused.detail.count(". ") == 0  # one sentence


@pytest.mark.parametrize(
    "row", ['{"text": "half \\ud83d"}', f'{{"id": {"9" * 5_000}, "text": "x"}}', "[" * 100_000]
)
def test_one_bad_row_refuses_no_file(client: TestClient, settings: Settings, row: str) -> None:
    path = settings.data_dir / "a.jsonl"
    path.write_text(f"{row}\n{GOOD}")
    create(client, config={"data": {"dataset": str(path)}})


def test_a_reader_of_files_is_refused(client: TestClient) -> None:
    body = {"preset": "quick-test", "config": {"data": {"dataset": "text"}}}
    assert "is a file type" in problem(client.post("/api/runs", json=body), 422).detail


def test_an_estimate_tells_how_the_text_is_read(client: TestClient, settings: Settings) -> None:
    path: Path = settings.data_dir / "a.txt"
    path.write_text("\n".join(f"line {n}" for n in range(300)))
    body = {"preset": "quick-test", "config": {"data": {"dataset": str(path)}}}
    found = client.post("/api/config/estimate", json=body).json()
    divided, repeated = found["warnings"][-2:]
    assert f"Each line of '{path}' is a document" in divided
    assert f"'{path}' holds about" in repeated
