"""Which files of a folder are read. Splits are compared with those the datasets library finds."""

import json
from pathlib import Path

import pytest
from datasets.data_files import DataFilesDict, get_data_patterns

from sae_engine.errors import ConfigError
from sae_engine.schema.config import DataConfig
from sae_engine.text.notices import TextNotices
from sae_engine.text.paths import dataset_files, is_local_dataset
from sae_engine.text.sources import open_text_source
from tests.sae_engine.text.test_bad_rows import preflight, read

CODE = {"src/main.py": "import os\n\nprint(os)\n", "docs/guide.md": "# Guide\n\nRead it.\n"}


def fill(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def rows(*texts: str) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def chosen(folder: Path, **config: object) -> list[str]:
    data = DataConfig.model_validate({"dataset": str(folder), **config})
    return [path.relative_to(folder).as_posix() for path in dataset_files(data).paths]


@pytest.mark.parametrize("empty", ["part-00000.jsonl", "part-00001.jsonl", "part-00002.jsonl"])
def test_an_empty_file_among_others_is_passed_over(tmp_path: Path, empty: str):
    files = {f"part-0000{n}.jsonl": rows(f"of part {n}") for n in range(3)}
    fill(tmp_path, {**files, empty: ""})
    assert preflight(tmp_path) == []
    assert len(read(tmp_path)) == 2


def test_every_file_is_looked_at_before_the_start(tmp_path: Path):
    fill(tmp_path, {f"{n:02}.jsonl": rows("fine") for n in range(30)})
    fill(tmp_path, {"29.jsonl": '{"body": "no text"}\n'})
    with pytest.raises(ConfigError, match=r"no column 'text' in line 1 of '.*29\.jsonl'"):
        preflight(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints/a-checkpoint.jsonl",
        ".cache/huggingface/a.jsonl",
        "._a.jsonl",
        "sub/.hidden.txt",
        "__MACOSX/._a.jsonl",
        "_temporary/0/part-0.jsonl",
        "a.jsonl.tmp",
        "a.jsonl~",
    ],
)
def test_hidden_and_half_written_files_are_not_read(tmp_path: Path, name: str):
    fill(tmp_path, {"a.jsonl": rows("kept"), name: rows("old copy")})
    assert read(tmp_path) == ["kept"]


def test_a_hidden_folder_that_is_named_is_read(tmp_path: Path):
    folder = fill(tmp_path / ".cache" / "mine", {"a.jsonl": rows("kept")})
    assert read(folder) == ["kept"]


LAYOUTS = [
    ["train.jsonl", "test.jsonl"],
    ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "validation.jsonl"],
    ["train/a.jsonl", "validation/b.jsonl", "dev/c.jsonl", "readme.txt"],
    ["my-training-set.jsonl", "my_eval.jsonl", "other.jsonl"],
    ["data/train-00000-of-00001.jsonl", "data/books-00000-of-00001.jsonl", "test.jsonl"],
    ["a/training/x.jsonl", "a/testing 2/x.jsonl"],
    ["val.jsonl", "evaluation/part.jsonl"],
    ["contest.jsonl", "trainer.jsonl", "latest.jsonl", "retrain.jsonl"],
    ["test.jsonl.gz", "train.jsonl.gz"],
]


@pytest.mark.parametrize("names", LAYOUTS, ids=lambda names: names[0])
def test_splits_are_those_of_the_datasets_library(tmp_path: Path, names: list[str]):
    fill(tmp_path, dict.fromkeys(names, rows("some text")))
    patterns = get_data_patterns(str(tmp_path))
    found = DataFilesDict.from_patterns(patterns, base_path=str(tmp_path))
    for split, paths in found.items():
        theirs = sorted(Path(path).relative_to(tmp_path).as_posix() for path in paths)
        assert chosen(tmp_path, split=str(split)) == theirs
    missing = {"train", "validation", "test"} - {str(split) for split in found}
    for split in missing:
        with pytest.raises(ConfigError, match=f"no split '{split}'.* it has: .*'all' reads every"):
            chosen(tmp_path, split=split)
    assert chosen(tmp_path, split="all") == sorted(names)


def test_what_is_left_out_of_a_folder_is_said(tmp_path: Path):
    fill(tmp_path, {"train.jsonl": rows("a"), "test.jsonl": rows("b"), "notes.md": "c"})
    assert preflight(tmp_path) == [f"Read from '{tmp_path}': files of split 'train', 1 of 3."]


def test_a_folder_of_source_code_is_read_file_by_file(tmp_path: Path):
    binary = {"logo.png": b"\x89PNG\r\n\x1a\n" + bytes(90), ".git/config": "[core]"}
    fill(tmp_path, {**CODE, **binary})
    assert read(tmp_path) == [CODE["docs/guide.md"], CODE["src/main.py"]]
    assert preflight(tmp_path) == [f"Read from '{tmp_path}': files with text, 2 of 3."]


def test_every_text_file_of_a_folder_is_read_when_documents_are_files(tmp_path: Path):
    fill(tmp_path, {**CODE, "requirements.txt": "one\n\ntwo\n"})
    assert read(tmp_path) == ["one\n", "two\n"]
    notices = TextNotices()
    assert len(read(tmp_path, notices, documents="file")) == 3
    assert notices.sentences == []


def test_a_single_file_of_code_is_read(tmp_path: Path):
    path = fill(tmp_path, CODE) / "src/main.py"
    assert read(path, documents="file") == [CODE["src/main.py"]]
    assert read(path) == ["import os\n", "print(os)\n"]


@pytest.mark.parametrize(
    ("name", "is_local"),
    [
        ("corpus.txt", True),
        ("Corpus.JSONL.gz", True),
        ("a/b.csv", True),
        ("~/corpus", True),
        ("../corpus", True),
        ("here", True),
        ("user/corpus", False),
        ("wikitext", False),
        ("user/data.v2", False),
    ],
)
def test_a_name_is_local_if_it_looks_like_a_path_or_exists(tmp_path, monkeypatch, name, is_local):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert is_local_dataset(name) == is_local


def test_what_is_true_of_many_files_is_said_once(tmp_path: Path):
    fill(tmp_path, {f"{n:02}.txt": f"one {n}\ntwo {n}\n" for n in range(40)})
    [sentence] = preflight(tmp_path)
    assert sentence.startswith(f"Each line of '{tmp_path}/00.txt' is a document")
    assert sentence.endswith(" The same is true of 39 more files.")


@pytest.mark.parametrize(
    ("files", "division"),
    [
        ({"a.txt": "one\ntwo\nthree", "b.txt": "four\nfive"}, "lines"),
        ({"a.txt": "one\ntwo\nthree", "b.txt": "four\n\nfive"}, None),
        ({"a.txt": "one\ntwo\nthree", "b.jsonl": rows("four")}, None),
        ({"a.py": "x = 1\ny = 2\n", "b.py": "z = 3"}, "file"),
    ],
)
def test_a_folder_has_a_division_if_all_its_files_share_it(
    tmp_path: Path, files: dict[str, str | bytes], division: str | None
):
    folder = fill(tmp_path / "texts", files)
    assert open_text_source(DataConfig(dataset=str(folder))).division() == division
