"""Contents of local files are recognized by a bounded number of their bytes."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from sae_engine.text import contents
from sae_engine.text.contents import contents_hash


def hash_of(folder: Path) -> str:
    return contents_hash({path.name: path for path in sorted(folder.iterdir())})


@pytest.fixture(params=["whole", "in pieces"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch) -> Path:
    if request.param == "in pieces":
        monkeypatch.setattr(contents, "NUM_PIECES", 8)
        monkeypatch.setattr(contents, "PIECE_BYTES", 100)
    folder = tmp_path / "data"
    folder.mkdir()
    for name, size in (("a", 0), ("b", 5_000), ("c", 0), ("d", 20_000)):
        (folder / name).write_bytes(random.Random(name).randbytes(size))
    return folder


def test_a_copy_with_other_times_has_the_same_hash(folder: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    os.utime(copy / "b", (0, 0))
    assert hash_of(copy) == hash_of(folder)


def change_end(folder: Path) -> None:
    with (folder / "d").open("r+b") as file:
        file.seek(19_950)
        file.write(b"x" * 50)


def change_beginning(folder: Path) -> None:
    with (folder / "b").open("r+b") as file:
        file.write(b"x" * 50)


def change_a_fifth(folder: Path) -> None:
    with (folder / "d").open("r+b") as file:
        file.seek(7_000)
        file.write(b"x" * 5_000)


@pytest.mark.parametrize(
    "change",
    [
        change_beginning,
        change_a_fifth,
        change_end,
        lambda folder: (folder / "a").write_text("x"),
        lambda folder: (folder / "c").rename(folder / "e"),
        lambda folder: (folder / "c").unlink(),
    ],
)
def test_a_change_of_text_size_or_name_changes_the_hash(folder: Path, change):
    before = hash_of(folder)
    change(folder)
    assert hash_of(folder) != before


def test_the_bytes_read_do_not_grow_with_the_files(folder: Path, monkeypatch):
    monkeypatch.setattr(contents, "NUM_PIECES", 8)
    monkeypatch.setattr(contents, "PIECE_BYTES", 100)
    sizes = {path: path.stat().st_size for path in sorted(folder.iterdir())}
    pieces = list(contents._pieces(sizes))
    assert len(pieces) == 8
    assert {piece.path.name for piece in pieces} == {"b", "d"}
    assert all(0 <= piece.offset < sizes[piece.path] for piece in pieces)
    assert (pieces[0].offset, pieces[-1].offset) == (0, 19_900)
