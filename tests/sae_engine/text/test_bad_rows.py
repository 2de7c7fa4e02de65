"""Rows that cannot be used are left out, counted and named; the others are read as they are."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from sae_engine.errors import ConfigError
from sae_engine.preflight import check_text
from sae_engine.schema.config import DataConfig
from sae_engine.text.documents import Split
from sae_engine.text.hub_dataset import HubDataset
from sae_engine.text.notices import TextNotices
from sae_engine.text.rows import Row, usable_texts
from sae_engine.text.sources import documents

GOOD = [f"text number {n}" for n in range(40)]
DEEP = '{"a": ' + "[" * 100_000 + "]" * 100_000 + ', "text": "unread"}'


def read(path: Path, notices: TextNotices | None = None, **config: object) -> list[str]:
    data = DataConfig.model_validate({"dataset": str(path), **config})
    both = [d for split in ("train", "heldout") for d in documents(data, split, 0, notices)]
    return [document.text for document in sorted(both)]


def preflight(path: Path) -> list[str]:
    return check_text(DataConfig(dataset=str(path)))


def json_lines(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(rows), "utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"text": ', "it is not JSON"),
        ("[1, 2]", "it is not a JSON object"),
        ('{"body": "elsewhere"}', "no column 'text'"),
        ('{"text": NaN}', "column 'text' holds float, not text"),
        ('{"text": 7}', "column 'text' holds int, not text"),
        ('{"text": ["a"]}', "column 'text' holds list, not text"),
        pytest.param(DEEP, "it is nested too deeply", id="deep"),
    ],
)
@pytest.mark.parametrize("place", [0, 25, 40])
def test_a_bad_row_is_left_out_and_counted_once(tmp_path: Path, row: str, reason: str, place: int):
    rows = [json.dumps({"text": text}) for text in GOOD]
    path = json_lines(tmp_path / "a.jsonl", [*rows[:place], row, *rows[place:], row])
    notices = TextNotices()
    for _ in range(2):  # passes
        assert read(path, notices) == GOOD
    [sentence] = notices.sentences
    first = f"the first is line {place + 1} of '{path}'."
    assert sentence == f"2 rows were left out ({reason}); {first}"
    assert preflight(path) == ([] if place else [f"1 row was left out ({reason}); {first}"])


def test_a_file_whose_first_hundred_rows_are_bad_is_refused(tmp_path: Path):
    bad = ['{"body": 1}'] * 100
    path = json_lines(tmp_path / "a.jsonl", [*bad, '{"text": "late"}'])
    with pytest.raises(ConfigError, match=r"no column 'text' in line 1 of .* columns are: body"):
        preflight(path)
    assert read(json_lines(path, [*bad[1:], '{"text": "late"}'])) == ["late"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"text_column": "a"}, {"text_column": "b"}),
        ({"subset": "a"}, {"subset": "b"}),
        ({"split": "train"}, {"split": "test"}),
    ],
)
def test_rows_of_every_part_of_a_mixture_are_counted(one: dict, other: dict):
    notices = TextNotices()
    for _ in range(2):  # passes
        for part, numbers in ((one, (3, 9)), (other, (1, 2, 3))):
            rows = [Row(number, 7) for number in numbers]
            config = DataConfig(dataset="some/texts", **part)
            texts = usable_texts(rows, config, "some/texts", "row", notices, from_start=False)
            assert list(texts) == [""] * len(numbers)
    counts = [int(sentence.split()[0]) for sentence in notices.sentences]
    assert sum(counts) == 5


@pytest.mark.parametrize("start", [1, 40, 200])
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_reading_goes_on_where_only_bad_rows_follow(monkeypatch, start: int, split: Split):
    values = [*GOOD[:start], *[7] * 300][:300]

    def rows(_: HubDataset, start: int) -> Iterator[Row]:
        return (Row(n + 1, value) for n, value in enumerate(values) if n >= start)

    monkeypatch.setattr(HubDataset, "_rows", rows)
    config = DataConfig(dataset="some/texts")
    whole = list(HubDataset(config, TextNotices()).documents(split, 0))
    later = list(HubDataset(config, TextNotices()).documents(split, start))
    assert later == [document for document in whole if document.number >= start]
    values[:start] = []
    with pytest.raises(ConfigError, match="holds int, not text"):
        list(HubDataset(config, TextNotices()).documents(split, 0))


@pytest.mark.parametrize("digits", [5_000, 200_000])
def test_a_huge_integer_beside_the_text_changes_nothing(tmp_path: Path, digits: int):
    rows = [json.dumps({"text": text}) for text in GOOD]
    rows[0] = f'{{"id": {"9" * digits}, "text": "text number 0"}}'
    notices = TextNotices()
    assert read(json_lines(tmp_path / "a.jsonl", rows), notices) == GOOD
    assert notices.sentences == []


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (r"half \ud83d of it", "half \ufffd of it"),
        (r"\udc00 lonely", "\ufffd lonely"),
        (r"swapped \ude00\ud83d", "swapped \ufffd\ufffd"),
        (r"whole \ud83d\ude00", "whole \U0001f600"),
        (r"nothing \u0000 here", "nothing \0 here"),
    ],
)
def test_half_a_surrogate_pair_becomes_a_replacement_character(tmp_path: Path, escaped, text):
    path = json_lines(tmp_path / "a.jsonl", [f'{{"text": "{escaped}"}}'])
    assert read(path) == [text]


ARROW_TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.binary()]


def strings_of(values: list[bytes], kind: pa.DataType) -> pa.Array:
    """A column of strings that are not checked to be UTF-8."""
    plain = pa.array(values, pa.binary())
    if kind == pa.binary():
        return plain
    return pa.Array.from_buffers(pa.string(), len(plain), plain.buffers()).cast(kind)


def to_parquet(table: pa.Table, path: Path) -> None:
    parquet.write_table(table, path)


def to_arrow(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def to_arrow_stream(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


WRITERS = {"parquet": to_parquet, "file.arrow": to_arrow, "stream.arrow": to_arrow_stream}


def numbers_as(kind: pa.DataType, number: int) -> pa.Array:
    """A column of one value of `kind`, stored as `number`, and one null."""
    return pa.array([number, None], pa.int64()).view(kind)


@pytest.mark.parametrize("name", ["file.arrow", "stream.arrow"])
@pytest.mark.parametrize(
    "values",
    [
        numbers_as(pa.timestamp("s"), 2**62),
        numbers_as(pa.timestamp("us", "UTC"), -(2**62)),
        numbers_as(pa.timestamp("s", "Not/A/Zone"), 1),
        numbers_as(pa.duration("s"), 2**62),
        pa.array([[2**62], None]).cast(pa.list_(pa.timestamp("s"))),
        pa.ListArray.from_arrays(pa.array([0, None, 1]), strings_of([b"\xff"], pa.string())),
    ],
    ids=lambda values: str(values.type),
)
def test_values_that_python_cannot_hold_are_bad_rows(tmp_path: Path, name: str, values: pa.Array):
    path = tmp_path / f"a.{name}"
    WRITERS[name](pa.table({"text": values}), path)
    notices = TextNotices()
    assert read(path, notices) == []
    [sentence] = notices.sentences
    assert re.match(r"1 row was left out \(column 'text' holds \w+Scalar, not text\)", sentence)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kind", ARROW_TYPES, ids=str)
def test_bytes_that_are_not_utf_8_become_replacement_characters(tmp_path: Path, name, kind):
    values = [text.encode() for text in GOOD]
    values[17] = b"caf\xe9 and \xff"
    path = tmp_path / f"a.{name}"
    WRITERS[name](pa.table({"id": range(40), "text": strings_of(values, kind)}), path)
    expected = [*GOOD[:17], "caf\ufffd and \ufffd", *GOOD[18:]]
    assert read(path) == expected
    assert preflight(path) == []


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[len(data) // 2 :],
        lambda data: b"just some words under a wrong name",
        lambda data: b"",
    ],
    ids=["cut off", "without its head", "something else", "empty"],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]):
    path = tmp_path / f"a.{name}"
    texts = [f"{text} " * 50 for text in GOOD]
    table = pa.table({"text": texts})
    WRITERS[name](table, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=f"'{path}' cannot be read as (Parquet|Arrow)"):
        read(path)


def test_a_damaged_page_is_named_with_its_row(tmp_path: Path):
    path = tmp_path / "a.parquet"
    texts = [f"text number {n} " * 40 for n in range(400)]
    table = pa.table({"text": texts})
    parquet.write_table(table, path, use_dictionary=False, row_group_size=100)
    chunk = parquet.ParquetFile(path).metadata.row_group(2).column(0)
    data = bytearray(path.read_bytes())
    middle = chunk.data_page_offset + chunk.total_compressed_size // 2
    data[middle : middle + 60] = bytes(60)
    path.write_bytes(data)
    assert preflight(path) == []  # which reads only the beginning
    with pytest.raises(
        ConfigError, match=r"cannot be read as Parquet from row (193|2\d\d) on: it is"
    ):
        read(path)


def test_a_row_of_csv_without_the_column_is_blank_and_bad_quotes_are_survived(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,"one, with ""quotes""\nand two lines"\n2\n3,three\n4,"four\n')
    assert read(path) == ['one, with "quotes"\nand two lines', "three", "four\n"]
