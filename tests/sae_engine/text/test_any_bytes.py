"""Any texts come back as written from any format; any bytes are read or refused in one sentence.

`TEXT_EXAMPLES=2000 pytest tests/sae_engine/text/test_any_bytes.py` tries more than usual.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sae_engine.errors import ConfigError
from sae_engine.preflight import check_text
from sae_engine.schema.config import DataConfig
from sae_engine.text import local_files
from tests.damage import damaged, wounds
from tests.sae_engine.text.test_bad_rows import read

EXAMPLES = int(os.environ.get("TEXT_EXAMPLES", "40"))
many = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
few = settings(many, max_examples=EXAMPLES // 10)
"""For files that are first tried in another process."""

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]
COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress} | {
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True)
}
characters = st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\t\n\"',;\0\r")
any_text = st.text(characters, min_size=1, max_size=80).filter(str.strip)
lines = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1).filter(
    lambda text: text.strip() and "\ufeff" not in text
)


def as_json_lines(texts: list[str], ascii_only: bool) -> str:
    return "".join(json.dumps({"text": t}, ensure_ascii=ascii_only) + "\n" for t in texts)


def as_csv(texts: list[str], delimiter: str) -> str:
    table = io.StringIO()
    writer = csv.writer(table, delimiter=delimiter)
    writer.writerows([["id", "text"], *([n, text] for n, text in enumerate(texts))])
    return table.getvalue()


def as_parquet(texts: list[str], kind: pa.DataType) -> bytes:
    buffer = pa.BufferOutputStream()
    parquet.write_table(pa.table({"text": pa.array(texts, kind)}), buffer, row_group_size=3)
    return buffer.getvalue().to_pybytes()


def as_arrow(texts: list[str], kind: pa.DataType) -> bytes:
    buffer = pa.BufferOutputStream()
    table = pa.table({"text": pa.array(texts, kind)})
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return buffer.getvalue().to_pybytes()


def read_back(name: str, content: bytes, **config: object) -> list[str]:
    with TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        with patch.object(local_files, "require_harmless"):  # a process for each of many files
            return read(path, **config)


@many
@given(st.lists(any_text, min_size=1), st.booleans(), st.sampled_from(ENCODINGS), st.data())
def test_json_lines_come_back(texts: list[str], ascii_only: bool, encoding: str, data):
    suffix = data.draw(st.sampled_from(list(COMPRESS)))
    content = COMPRESS[suffix](as_json_lines(texts, ascii_only).encode(encoding))
    assert read_back(f"a.jsonl{suffix}", content) == texts


@many
@given(st.lists(any_text, min_size=1), st.sampled_from(",;\t|"), st.sampled_from(ENCODINGS))
def test_values_of_csv_come_back(texts: list[str], delimiter: str, encoding: str):
    found = read_back("a.csv", as_csv(texts, delimiter).encode(encoding))
    assert found == [t.replace("\r\n", "\n").replace("\r", "\n") for t in texts]


@many
@given(st.lists(any_text, min_size=1), st.sampled_from([pa.string(), pa.large_string()]))
def test_columns_come_back(texts: list[str], kind: pa.DataType):
    assert read_back("a.parquet", as_parquet(texts, kind)) == texts
    assert read_back("a.arrow", as_arrow(texts, kind)) == texts


@many
@given(st.lists(lines, min_size=1), st.sampled_from(ENCODINGS), st.sampled_from(list(COMPRESS)))
def test_lines_and_paragraphs_come_back(texts: list[str], encoding: str, suffix: str):
    compress = COMPRESS[suffix]
    joined = compress("\n".join(texts).encode(encoding))
    assert read_back(f"a.txt{suffix}", joined, documents="lines") == texts
    spaced = compress("\n\n".join(texts).encode(encoding))
    found = read_back(f"a.txt{suffix}", spaced, documents="paragraphs")
    assert [text.removesuffix("\n") for text in found] == texts


SAMPLES = {
    "a.txt": "Old words, größer und älter.\n\nA second paragraph.\n".encode("utf-16"),
    "a.jsonl": as_json_lines(["some text", "größer", "third"], ascii_only=False).encode(),
    "a.jsonl.gz": gzip.compress(as_json_lines(["some text", "more"], ascii_only=True).encode()),
    "a.jsonl.zst": COMPRESS[".zst"](as_json_lines(["some text"] * 9, ascii_only=True).encode()),
    "a.jsonl.bz2": bz2.compress(b'{"text": "some text"}\n' * 9),
    "a.jsonl.xz": lzma.compress(b'{"text": "some text"}\n' * 9),
    "a.csv": as_csv(["some text", 'with "quotes"'], ",").encode(),
    "a.parquet": as_parquet([f"text number {n}" for n in range(20)], pa.string()),
    "a.arrow": as_arrow([f"text number {n}" for n in range(20)], pa.string()),
}
COLUMNAR = ["a.parquet", "a.arrow"]


@pytest.mark.parametrize("name", sorted(SAMPLES.keys() - COLUMNAR))
@many
@given(wounds=wounds)
def test_a_damaged_file_is_read_or_refused_in_one_sentence(name: str, wounds: list):
    refused_or_read(name, damaged(SAMPLES[name], wounds))


@pytest.mark.parametrize("name", COLUMNAR)
@few
@given(wounds=wounds)
def test_a_damaged_columnar_file_is_read_or_refused_in_one_sentence(name: str, wounds: list):
    refused_or_read(name, damaged(SAMPLES[name], wounds))


DAMAGED_VALUES = {
    "texts": (pa.array(["first", "other"]), [0, 5, 10]),
    "large texts": (pa.array(["first", "other"], pa.large_string()), [0, 0, 5, 0, 10]),
    "lists": (pa.array([["a"] * 5, ["b"] * 5]), [0, 5, 10]),
    "repeated texts": (pa.array(["first", "other"] * 2).dictionary_encode(), [0, 1, 0, 1]),
}
"""Arrays, and numbers of each that lead outside its memory when the last of them grows."""


@pytest.mark.parametrize("kind", DAMAGED_VALUES)
def test_an_arrow_file_that_leads_outside_its_memory_is_refused(kind: str, tmp_path: Path):
    array, numbers = DAMAGED_VALUES[kind]
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_file(buffer, pa.schema([("text", array.type)])) as writer:
        writer.write_batch(pa.record_batch({"text": array}))
    content = buffer.getvalue().to_pybytes()
    good, bad = (np.array(n, np.int32).tobytes() for n in (numbers, [*numbers[:-1], 2**30]))
    assert content.count(good) == 1
    path = tmp_path / "a.arrow"
    path.write_bytes(content.replace(good, bad))
    with pytest.raises(ConfigError, match="cannot be read as Arrow from row 1 on"):
        read(path)


def test_a_parquet_file_that_ends_its_reader_is_refused_by_name(tmp_path: Path):
    content, text = SAMPLES["a.parquet"], b"\x15\x0c%\x02\x18\x04text"
    assert content.count(text) == 1
    truth_values = b"\x15\x00" + text[2:]  # of which the column has texts as bounds
    for name in ("good.parquet", "bad.parquet"):
        (tmp_path / name).write_bytes(content)
    assert len(read(tmp_path)) == 40
    (tmp_path / "bad.parquet").write_bytes(content.replace(text, truth_values))
    with pytest.raises(ConfigError, match=r"'.*bad\.parquet' cannot be read: it is damaged and"):
        read(tmp_path)
    assert len(read(tmp_path / "good.parquet")) == 20


@pytest.mark.parametrize("name", sorted(SAMPLES.keys() - COLUMNAR))
@many
@given(content=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused_in_one_sentence(name: str, content: bytes):
    refused_or_read(name, content)


@pytest.mark.parametrize("name", COLUMNAR)
@few
@given(content=st.binary(max_size=300))
def test_any_bytes_of_a_columnar_file_are_read_or_refused_in_one_sentence(
    name: str, content: bytes
):
    refused_or_read(name, content)


def refused_or_read(name: str, content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        for use in (lambda: check_text(DataConfig(dataset=str(path))), lambda: read(path)):
            try:
                use()
            except ConfigError as error:
                message = str(error)
                assert "\n" not in message
                assert f"'{path}'" in message or "Column 'text'" in message
