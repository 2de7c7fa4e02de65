"""Uploaded texts: stored whole or not at all, under safe names, and read as they say."""

from __future__ import annotations

import errno
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from safetensors.numpy import save
from starlette.testclient import TestClient

from backend.http import limits, problems, uploads
from backend.jobs.texts import MAX_NAME_BYTES, safe_name
from backend.settings import Settings
from sae_engine.schema.runs import Run
from tests.backend.conftest import create
from tests.backend.routes.test_runs import problem

ROWS = [{"id": n, "title": f"t{n}", "body": f"document number {n}"} for n in range(50)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def table() -> bytes:
    buffer = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(ROWS), buffer)
    return buffer.getvalue().to_pybytes()


def csv() -> bytes:
    lines = [";".join(map(str, row.values())) for row in ROWS]
    return "\n".join(["id;title;body", *lines]).encode()


def upload(client: TestClient, name: str, content: bytes | Iterator[bytes]) -> Any:
    return client.post("/api/texts", params={"name": name}, content=content)


def stored(settings: Settings) -> list[str]:
    folder = settings.data_dir / "texts"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def previewed(client: TestClient, **data: object) -> Any:
    return client.post(
        "/api/config/preview", json={"preset": "quick-test", "config": {"data": data}}
    )


@pytest.mark.parametrize(
    ("name", "content", "column"),
    [
        ("a.jsonl", JSONL, "body"),
        ("a.parquet", table(), "body"),
        ("a.csv", csv(), "body"),
        ("a.jsonl", b'{"text": "x", "body": "much longer"}\n', "text"),
        ("a.txt", b"one\n\ntwo", None),
        ("a.jsonl", b"[1]\n", None),
        ("a.parquet", b"no such thing", None),
    ],
)
def test_an_upload_is_stored_and_names_the_column_that_holds_the_text(
    client: TestClient, settings: Settings, name: str, content: bytes, column: str | None
) -> None:
    answer = upload(client, name, content)
    assert answer.status_code == 201
    body = {"path": f"texts/{name}", "bytes": len(content)}
    assert answer.json() == body | {"text_column": column}
    assert (settings.data_dir / "texts" / name).read_bytes() == content
    assert stored(settings) == [name]  # nothing half-written beside it
    assert client.get("/api/texts").json() == [body | {"text_column": None}]


def test_a_run_finds_an_uploaded_text_by_its_path_in_the_data_folder(
    client: TestClient, settings: Settings
) -> None:
    upload(client, "a.jsonl", JSONL)
    data = {"dataset": "texts/a.jsonl", "text_column": "body"}
    run: Run = create(client, config={"data": data})
    assert run.config.data.dataset == str(settings.data_dir / "texts" / "a.jsonl")
    [found] = previewed(client, **data).json()
    assert found["columns"] == ["id", "title", "body"]
    assert found["text_column"] == "body"
    assert set(found["documents"]) <= {row["body"] for row in ROWS}
    assert len(found["documents"]) == 3


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"dataset": "texts/b.jsonl"}, "in the data folder '{data_dir}'"),
        ({"dataset": "./b"}, "in the data folder '{data_dir}'"),
        ({"mixture": [{"dataset": "b.txt", "weight": 1}]}, "in the data folder '{data_dir}'"),
        ({"dataset": "texts/a.jsonl"}, "its columns are: id, title, body"),
        ({"dataset": "../../etc"}, "not in a folder that this server may read"),
    ],
)
def test_a_text_that_is_not_there_is_refused_with_the_folder_searched(
    client: TestClient, settings: Settings, data: dict[str, object], words: str
) -> None:
    upload(client, "a.jsonl", JSONL)
    (settings.data_dir.parent.parent / "etc").mkdir(exist_ok=True)
    body = {"preset": "quick-test", "config": {"data": data}}
    for route in ("/api/runs", "/api/config/preview", "/api/config/estimate"):
        detail = problem(client.post(route, json=body), 422).detail
        assert words.format(data_dir=settings.data_dir) in detail


def test_plain_text_and_the_embedded_corpus_are_previewed(client: TestClient) -> None:
    upload(client, "a.txt", "\n\n".join(f"paragraph {n}" for n in range(99)).encode())
    for dataset in ("texts/a.txt", "python-stdlib"):
        [found] = previewed(client, dataset=dataset).json()
        assert (found["columns"], found["text_column"]) == ([], None)
        assert len(found["documents"]) == 3
        assert all(0 < len(text) <= 400 for text in found["documents"])


@pytest.mark.parametrize(
    ("name", "content", "given", "division"),
    [
        ("a.txt", "one\n\ntwo\n\nthree", None, "paragraphs"),
        ("b.txt", "one\ntwo\nthree", None, "lines"),
        ("c.txt", "one\n\ntwo", "file", "file"),
        ("d.csv", "text\none\ntwo", None, None),
    ],
)
def test_a_preview_says_what_a_document_is(
    client: TestClient, name: str, content: str, given: str | None, division: str | None
) -> None:
    upload(client, name, content.encode())
    [found] = previewed(client, dataset=f"texts/{name}", documents=given).json()
    assert found["division"] == division


def test_no_upload_replaces_a_file(client: TestClient, settings: Settings) -> None:
    upload(client, "a.txt", b"first")
    refused = problem(upload(client, "a.txt", b"second"), 409)
    assert "data.dataset = texts/a.txt" in refused.detail
    assert (settings.data_dir / "texts" / "a.txt").read_bytes() == b"first"
    assert stored(settings) == ["a.txt"]


@pytest.mark.parametrize(
    ("given", "safe"),
    [
        ("corpus.jsonl", "corpus.jsonl"),
        ("../../etc/passwd", "passwd"),
        (r"C:\texts\my file.csv", "my file.csv"),
        (".bashrc", "bashrc"),
        ("a\nb\0c'$(rm -rf).txt", "a-b-c-rm -rf-.txt"),
        ("žluťoučký kůň.txt.gz", "žluťoučký kůň.txt.gz"),
        ("..", ""),
        ("///", ""),
        ("x" * 999 + ".jsonl.zst", "x" * (MAX_NAME_BYTES - 10) + ".jsonl.zst"),
        ("ž" * 999 + ".txt", "ž" * ((MAX_NAME_BYTES - 4) // 2) + ".txt"),
    ],
)
def test_names_are_made_safe_and_keep_their_endings(given: str, safe: str) -> None:
    assert safe_name(given) == safe
    assert len(safe.encode()) <= MAX_NAME_BYTES


@pytest.mark.parametrize("name", ["..", "/", "???"])
def test_a_name_without_a_letter_is_refused(
    client: TestClient, settings: Settings, name: str
) -> None:
    assert "rename the file" in problem(upload(client, name, b"x"), 422).detail
    assert stored(settings) == []


def test_an_empty_file_is_refused(client: TestClient, settings: Settings) -> None:
    assert "is empty" in problem(upload(client, "a.txt", b""), 422).detail
    assert stored(settings) == []


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_file_over_the_limit_leaves_nothing_behind(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch, in_parts: bool
) -> None:
    """Whether its size is declared at the beginning or only shows as it comes."""
    for module in (limits, uploads, problems):
        monkeypatch.setattr(module, "MAX_UPLOAD_BYTES", 1000)
    content = (b"x" * 100 for _ in range(11)) if in_parts else b"x" * 1100
    assert "A file may hold at most" in problem(upload(client, "a.txt", content), 413).detail
    assert stored(settings) == []
    assert upload(client, "a.txt", b"x" * 1000).status_code == 201


def test_other_requests_stay_small(client: TestClient) -> None:
    large = b"x" * (problems.MAX_BODY_BYTES + 1)
    assert "at most 4 MiB" in problem(client.post("/api/runs", content=large), 413).detail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_behind(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(_temporary: Path, _target: Path) -> bool:
        raise OSError(number, "full")

    monkeypatch.setattr(uploads, "_publish", full)
    answer = upload(client, "a.txt", b"x")
    assert "is full" in problem(answer, 507).detail
    assert stored(settings) == []


def upload_sae(client: TestClient, name: str, content: bytes) -> Any:
    return client.post("/api/saes", params={"name": name}, content=content)


@pytest.mark.parametrize("name", ["Mine.ZIP", "mine.safetensors", "params.npz"])
def test_an_sae_is_stored_and_can_be_imported_by_its_path(
    client: TestClient, settings: Settings, name: str
) -> None:
    content = io.BytesIO()
    if name == "Mine.ZIP":
        settings_ = {"architecture": "topk", "k": 1, "hook_name": "blocks.1.hook_resid_post"}
        with zipfile.ZipFile(content, "w") as file:
            file.writestr("my-sae/cfg.json", json.dumps(settings_))
            file.writestr("my-sae/sae_weights.safetensors", save({"W_dec": np.zeros((4, 2))}))
    elif name == "params.npz":
        np.savez(content, W_enc=np.zeros((2, 4)))
    else:
        content.write(save({"W_dec": np.zeros((4, 2))}, {"activation": "topk"}))
    answer = upload_sae(client, name, content.getvalue())
    assert answer.status_code == 201, answer.text
    assert answer.json() == {"path": f"imports/{name}", "bytes": len(content.getvalue())}
    assert (settings.data_dir / "imports" / name).read_bytes() == content.getvalue()
    found = client.get("/api/imports/found", params={"path": f"imports/{name}"})
    assert found.status_code == 200, found.text
    assert found.json()["name"] == {"Mine.ZIP": "my-sae"}.get(name, name.partition(".")[0])


@pytest.mark.parametrize(
    ("name", "content", "status", "words"),
    [
        ("cfg.json", b"{}", 422, "put the SAE's folder into a .zip"),
        ("zip", b"x", 422, "'zip' is not a .zip, .safetensors or .npz file"),
        ("a.zip", b"", 422, "is empty; choose one with an SAE"),
        ("there.zip", b"x", 409, "or import that one from imports/there.zip"),
    ],
)
def test_an_sae_that_cannot_be_stored_is_refused(
    client: TestClient, settings: Settings, name: str, content: bytes, status: int, words: str
) -> None:
    assert upload_sae(client, "there.zip", b"first").status_code == 201
    assert words in problem(upload_sae(client, name, content), status).detail
    folder = settings.data_dir / "imports"
    assert [(file.name, file.read_bytes()) for file in folder.iterdir()] == [
        ("there.zip", b"first")
    ]
