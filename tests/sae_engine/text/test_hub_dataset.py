"""Datasets of the hub, read through the hub's and the datasets library's own code.

Each case runs in its own process; see `hub_server.ask`.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

from sae_engine.errors import ConfigError
from sae_engine.schema.config import DataConfig
from sae_engine.text.hub_dataset import _FILE_READERS, HubDataset
from sae_engine.text.notices import TextNotices
from sae_engine.text.sources import documents
from tests.sae_engine.hub_server import Hub, ask, serve

TEXTS = [f"Document {n} of the hub. " + f"It says {n * n} again. " * 30 for n in range(90)]

READ = """
import json, time
from sae_engine.errors import UserError
from sae_engine.schema.config import DataConfig
from sae_engine.text.sources import documents
time.sleep = lambda seconds: None  # between tries
config = DataConfig.model_validate({config!r})
try:
    print(json.dumps([list(documents(config, split, {start})) for split in ("train", "heldout")]))
except UserError as error:
    print(json.dumps(str(error)))
"""

LIMITED_TRY = """
import signal
signal.alarm(15)  # ends the process, which fails the test
try:"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as hub:
        yield hub


def table(texts: list[str], column: str = "text") -> bytes:
    buffer = io.BytesIO()
    rows = pa.table({"id": list(range(len(texts))), column: pa.array(texts, pa.string())})
    parquet.write_table(rows, buffer, row_group_size=10)
    return buffer.getvalue()


def three_files(texts: list[str] = TEXTS, column: str = "text") -> dict[str, bytes]:
    third = len(texts) // 3
    return {
        f"data/train-0000{n}-of-00003.parquet": table(texts[n * third : (n + 1) * third], column)
        for n in range(3)
    }


def read(hub: Hub, home: Path, start: int = 0, **config: object) -> list[list[list]]:
    code = READ.format(config={"dataset": "some/texts", **config}, start=start)
    return ask(code, hub, home)


def expected(folder: Path, start: int = 0) -> list[list[list]]:
    """The same documents read from a local file."""
    path = folder / "local.parquet"
    path.write_bytes(table(TEXTS))
    config = DataConfig(dataset=str(path))
    return [[list(d) for d in documents(config, split, start)] for split in ("train", "heldout")]


CHATS = [
    [
        {"role": "user", "content": f"Question {n}?"},
        {"role": "assistant", "content": f"Answer {n}, größer. " * (1 + n % 3)},
    ]
    for n in range(60)
]
ODD_CHATS = {7: None, 8: [], 30: [{"role": "user", "content": None}]}
"""Rows that hold no conversation, in place of some."""


def chat_table(as_json: bool) -> bytes:
    rows = [ODD_CHATS.get(n, chat) for n, chat in enumerate(CHATS)]
    values = [None if row is None else json.dumps(row) for row in rows] if as_json else rows
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"talk": values}), buffer, row_group_size=10)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("streaming", "as_json", "start"), [(True, False, 25), (True, True, 0), (False, False, 0)]
)
def test_conversations_are_read_from_the_hub_as_from_a_file(
    hub: Hub, tmp_path: Path, streaming: bool, as_json: bool, start: int
) -> None:
    content = chat_table(as_json)
    hub.add("datasets", "some/texts", {"data/train-00000-of-00001.parquet": content})
    found = read(hub, tmp_path, start, messages_column="talk", streaming=streaming)
    both = sorted(found[0] + found[1])
    usable = [(n, chat) for n, chat in enumerate(CHATS) if n not in ODD_CHATS and n >= start]
    numbers = [n for n, _ in usable]
    assert [json.loads(text) for _, text in both] == [chat for _, chat in usable]
    path = tmp_path / "local.parquet"
    path.write_bytes(content)
    config = DataConfig(dataset=str(path), messages_column="talk")
    local = [[list(d) for d in documents(config, split, start)] for split in ("train", "heldout")]
    assert found == local
    assert all(found)
    assert len(numbers) == len(both)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("start", [0, 47])
def test_documents_come_in_order_from_any_start(hub, tmp_path, streaming, start):
    hub.add("datasets", "some/texts", three_files())
    found = read(hub, tmp_path / "home", start, streaming=streaming)
    assert found == expected(tmp_path, start)
    assert len(found[0]) > 20
    assert found[1]


MIX = """
import json
from tokenizers import Tokenizer
from sae_engine.preflight import embedded_model_folder
from sae_engine.schema.config import DataConfig
from sae_engine.text.packing import Cursor, Packing
from sae_engine.text.order import shuffled_rows
tokenizer = Tokenizer.from_file(str(embedded_model_folder() / "tokenizer.json"))
config = DataConfig.model_validate({config!r})
rows = shuffled_rows(config, Packing(tokenizer, 32, 2, 1), Cursor(), pool_rows=50)
rows.take(70)
again = shuffled_rows(config, Packing(tokenizer, 32, 2, 1), rows.cursor, pool_rows=50)
print(json.dumps([rows.take(90).tolist(), again.take(90).tolist(), again.cursor.counts]))
"""


def test_a_mixture_reads_a_dataset_of_the_hub_beside_a_local_file(hub, tmp_path):
    hub.add("datasets", "some/texts", three_files(column="body"))
    local, other = tmp_path / "local.parquet", tmp_path / "other.txt"
    local.write_bytes(table(TEXTS, "body"))
    other.write_text("\n\n".join(f"paragraph {n}" for n in range(200)))
    found = []
    for dataset in ("some/texts", str(local)):
        parts = [
            {"dataset": dataset, "weight": 3, "text_column": "body"},
            {"dataset": str(other), "weight": 1},
        ]
        config = {"ctx_len": 32, "mixture": parts}
        found.append(ask(MIX.format(config=config), hub, tmp_path / "home"))
    assert found[0] == found[1]
    rows, again, counts = found[0]
    assert rows == again
    assert counts == [113, 37]  # of the 150 rows in the first three pools


def test_num_samples_ends_reading_early(hub, tmp_path):
    hub.add("datasets", "some/texts", three_files())
    train, heldout = read(hub, tmp_path / "home", num_samples=25)
    assert sorted(n for n, _ in train + heldout) == list(range(25))
    assert "data/train-00002-of-00003.parquet" not in hub.sent


def test_only_the_named_subset_is_read(hub, tmp_path):
    parts = [f"- {{config_name: {name}, data_files: {name}/*}}" for name in ("one", "two")]
    card = "\n".join(["---", "configs:", *parts, "---", ""])
    files = {
        "README.md": card.encode(),
        "one/train.parquet": table(["not this"] * 9),
        "two/train.parquet": table(TEXTS),
    }
    hub.add("datasets", "some/texts", files)
    assert read(hub, tmp_path / "home", subset="two") == expected(tmp_path)
    message = read(hub, tmp_path / "home", subset="three")
    assert "could not be opened" in message
    assert "one" in message
    assert "two" in message


@pytest.mark.parametrize("times", [1, 40], ids=["once", "more often than the library retries"])
def test_a_connection_that_breaks_while_streaming_changes_no_document(hub, tmp_path, times):
    hub.add("datasets", "some/texts", three_files())
    hub.hang_ups["train-00001-of-00003.parquet"] = times
    assert read(hub, tmp_path / "home") == expected(tmp_path)
    assert hub.hang_ups["train-00001-of-00003.parquet"] == 0


def test_a_connection_that_breaks_while_downloading_changes_no_document(hub, tmp_path):
    hub.add("datasets", "some/texts", three_files())
    hub.hang_ups["train-00001-of-00003.parquet"] = 1
    assert read(hub, tmp_path / "home", streaming=False) == expected(tmp_path)
    assert hub.hang_ups["train-00001-of-00003.parquet"] == 0


def test_a_connection_that_keeps_breaking_fails_with_the_document_reached(hub, tmp_path):
    hub.add("datasets", "some/texts", three_files())
    hub.hang_ups["train-00001-of-00003.parquet"] = 10**6
    message = read(hub, tmp_path / "home")
    assert "'some/texts' stopped answering at document 30 and did not come back" in message


@pytest.mark.parametrize("streaming", [True, False])
def test_a_column_in_the_wrong_case_is_reported_with_the_existing_columns(hub, tmp_path, streaming):
    hub.add("datasets", "some/texts", three_files(column="Text"))
    message = read(hub, tmp_path, streaming=streaming)
    assert message == (
        "data.text_column: There is no column 'text' in 'some/texts'; its columns are: id, Text."
    )


@pytest.mark.parametrize("streaming", [True, False])
def test_a_missing_split_is_reported(hub, tmp_path, streaming):
    hub.add("datasets", "some/texts", three_files())
    message = read(hub, tmp_path, split="dev", streaming=streaming)
    assert "'some/texts' could not be opened" in message
    assert "dev" in message


def test_a_dataset_without_data_files_is_reported(hub, tmp_path):
    hub.add("datasets", "some/texts", {"README.md": b"Nothing yet."})
    message = read(hub, tmp_path)
    assert "'some/texts' could not be opened" in message
    assert "doesn't contain any data files" in message


@pytest.mark.parametrize("streaming", [True, False])
def test_a_dataset_without_rows_is_reported(hub, tmp_path, streaming):
    hub.add("datasets", "some/texts", {"data/train.parquet": table([])})
    message = read(hub, tmp_path, streaming=streaming)
    assert "'some/texts' c" in message  # cannot be read at document 0, or could not be opened


def test_a_gated_dataset_needs_the_token_and_says_so(hub, tmp_path):
    hub.add("datasets", "some/texts", three_files(), token="hf_right")
    code = READ.format(config={"dataset": "some/texts"}, start=0)
    for environment in ({}, {"HF_TOKEN": "hf_other"}):
        message = ask(code, hub, tmp_path / "home", **environment)
        assert message.startswith("The dataset 'some/texts' is gated: accept its terms")
        assert "HF_TOKEN" in message
    found = ask(code, hub, tmp_path / "home", HF_TOKEN="hf_right")
    assert found == expected(tmp_path)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_dataset_that_is_a_script_is_read_from_its_conversion(hub, tmp_path, streaming):
    converted = {"plain_text/train/0000.parquet": table(TEXTS[:50])}
    converted["plain_text/train/0001.parquet"] = table(TEXTS[50:])
    hub.add("datasets", "some/texts", {"texts.py": b"raise SystemExit('this must not run')"})
    hub.add("datasets", "some/texts", converted, revision="refs/convert/parquet")
    assert read(hub, tmp_path / "home", streaming=streaming) == expected(tmp_path)


def test_a_script_without_a_conversion_or_a_unique_subset_is_refused_with_the_remedy(hub, tmp_path):
    hub.add("datasets", "some/texts", {"texts.py": b""})
    assert "no conversion of it to Parquet; use another dataset" in read(hub, tmp_path)
    converted = {f"{name}/train/0000.parquet": table(TEXTS) for name in ("one", "two")}
    hub.add("datasets", "some/texts", converted, revision="refs/convert/parquet")
    assert "has these: one, two; name one of them" in read(hub, tmp_path)
    assert "has these: one, two" in read(hub, tmp_path, subset="three")
    assert read(hub, tmp_path / "home", subset="two") == expected(tmp_path)


@pytest.mark.parametrize("streaming", [True, False])
def test_bad_rows_are_left_out_and_bad_bytes_replaced(hub, tmp_path, streaming):
    values = [text.encode() for text in TEXTS]
    values[20], values[40] = b"caf\xe9", None
    plain = pa.array(values, pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 90, plain.buffers(), plain.null_count)
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"text": texts}), buffer, row_group_size=10)
    hub.add("datasets", "some/texts", {"data/train.parquet": buffer.getvalue()})
    train, heldout = read(hub, tmp_path / "home", streaming=streaming)
    found = dict(train + heldout)
    expected = {n: text for n, text in enumerate(TEXTS) if n != 40} | {20: "caf\ufffd"}
    assert found == expected


def test_damaged_data_is_named_by_its_document(hub, tmp_path):
    data = bytearray(table(TEXTS))
    chunk = parquet.ParquetFile(io.BytesIO(data)).metadata.row_group(5).column(1)
    end = chunk.data_page_offset + chunk.total_compressed_size
    data[end - 40 : end] = bytes(40)
    hub.add("datasets", "some/texts", {"data/train.parquet": bytes(data)})
    message = read(hub, tmp_path / "home")
    assert message.startswith("'some/texts' cannot be read at document 50: its data is damaged")


@pytest.mark.parametrize("name", ["text", "csv", "json", "parquet", "ImageFolder"])
def test_a_reader_of_files_is_no_dataset(name):
    with pytest.raises(ConfigError, match=f"'{name}' is a file type, not a dataset"):
        list(documents(DataConfig(dataset=name), "train"))


def test_all_readers_of_files_are_known():
    assert set(_PACKAGED_DATASETS_MODULES) <= _FILE_READERS


@pytest.mark.parametrize("name", ["a/b/c", "hf://datasets/a/b", "user/", "http://x/y", "a b", ""])
def test_what_is_neither_a_path_nor_an_id_is_refused(name):
    config = DataConfig.model_construct(dataset=name, num_samples=None)
    with pytest.raises(ConfigError, match="neither a dataset of the hub"):
        HubDataset(config, TextNotices()).check()


def test_a_dataset_that_does_not_exist_is_reported(hub, tmp_path):
    assert "There is no dataset 'some/texts'" in read(hub, tmp_path)


def test_an_unreachable_hub_is_reported_within_seconds(tmp_path):
    nowhere = Hub()
    nowhere.endpoint = "http://127.0.0.1:9"
    code = READ.format(config={"dataset": "some/texts"}, start=0).replace("try:", LIMITED_TRY)
    message = ask(code, nowhere, tmp_path)
    assert message.startswith("The dataset 'some/texts' is not cached and the Hugging Face hub")
    assert "check the network" in message


CONTENTS = """
import json
from sae_engine.schema.config import DataConfig
from sae_engine.text.sources import open_text_source

print(json.dumps(open_text_source(DataConfig(dataset="some/texts")).contents()))
"""


def test_a_dataset_is_known_by_its_files_and_not_by_its_card(hub, tmp_path):
    def contents(files: dict[str, bytes], **environment: str) -> str:
        hub.repositories.clear()
        hub.add("datasets", "some/texts", files)
        return ask(CONTENTS, hub, tmp_path, **environment)

    files = three_files()
    first = contents(files)
    assert first
    assert contents(files | {"README.md": b"A new card."}) == first
    assert contents(files | three_files(TEXTS[::-1])) not in ("", first)
    assert contents(files, HF_HUB_OFFLINE="1") == ""
