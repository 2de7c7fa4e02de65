import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from sae_engine.errors import ConfigError
from sae_engine.schema.config import DataConfig
from sae_engine.text.sources import documents

TEXTS = [f"text number {n}\nwith two lines" for n in range(60)]


def all_texts(config: DataConfig) -> list[str]:
    both = [*documents(config, "train"), *documents(config, "heldout")]
    return [d.text for d in sorted(both)]


def written(folder: Path, suffix: str) -> Path:
    path = folder / f"texts{suffix}"
    if suffix == ".txt":
        path.write_text("\n\n\n".join(TEXTS))
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({"text": t, "id": 1}) for t in TEXTS))
    else:
        parquet.write_table(pa.table({"text": TEXTS, "id": list(range(60))}), path)
    return path


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_every_document_of_a_file_is_read_once_in_order(tmp_path: Path, suffix: str):
    read = all_texts(DataConfig(dataset=str(written(tmp_path, suffix))))
    assert [t.strip() for t in read] == TEXTS


def test_a_folder_is_read_file_by_file(tmp_path: Path):
    for suffix in (".txt", ".jsonl"):
        written(tmp_path, suffix)
    assert len(all_texts(DataConfig(dataset=str(tmp_path) + "/"))) == 120


@pytest.mark.parametrize("start", [0, 7, 59, 60])
def test_reading_can_begin_at_any_document(tmp_path: Path, start: int):
    config = DataConfig(dataset=str(written(tmp_path, ".jsonl")))
    whole = list(documents(config, "train"))
    assert list(documents(config, "train", start)) == [d for d in whole if d.number >= start]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_missing_column_is_named_with_the_existing_columns(tmp_path: Path, suffix: str):
    config = DataConfig(dataset=str(written(tmp_path, suffix)), text_column="body")
    with pytest.raises(ConfigError, match=r"no column 'body' in .*columns are: text, id"):
        all_texts(config)


def test_a_column_that_is_not_text_is_refused(tmp_path: Path):
    config = DataConfig(dataset=str(written(tmp_path, ".parquet")), text_column="id")
    with pytest.raises(ConfigError, match="Column 'id' holds int, not text"):
        all_texts(config)


def test_a_file_of_other_lines_than_json_is_refused_with_its_first_line(tmp_path: Path):
    path = tmp_path / "broken.jsonl"
    path.write_text("\n{text: broken}\nno JSON either\n")
    with pytest.raises(ConfigError, match=r"Line 2 of .* is not JSON"):
        all_texts(DataConfig(dataset=str(path)))


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path):
    path = tmp_path / "broken.parquet"
    path.write_bytes(b"not parquet at all")
    with pytest.raises(ConfigError, match="cannot be read as Parquet"):
        all_texts(DataConfig(dataset=str(path)))
