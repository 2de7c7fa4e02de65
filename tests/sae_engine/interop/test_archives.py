"""The SAE in a zip is found and unpacked; zips that are damaged or unsafe are refused."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from sae_engine.errors import UserError
from sae_engine.interop.archives import is_archive, unpacked, unpacked_folder


def write_zip(path: Path, files: Mapping[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("files", "name", "inside"),
    [
        (
            {
                "mine-step5/cfg.json": "{}",
                "mine-step5/sae_weights.safetensors": "w",
            },
            "mine-step5",
            {"cfg.json", "sae_weights.safetensors"},
        ),
        ({"ae.pt": "w", "config.json": "{}"}, "mine", {"ae.pt", "config.json"}),
        (
            {
                "all/pages/index.html": "p",
                "all/jsonl/features.jsonl": "f",
                "all/sae/params.npz": "w",
                "__MACOSX/all/sae/._params.npz": "m",
            },
            "sae",
            {"params.npz"},
        ),
        (
            {
                "run/sae.safetensors": "w",
                "run/checkpoints/best/sae.safetensors": "b",
                "run/features/5/index.npy": "i",
            },
            "run",
            {"sae.safetensors"},
        ),
    ],
)
def test_the_outermost_folder_with_tensors_is_unpacked_alone(
    tmp_path: Path, files: dict[str, str], name: str, inside: set[str]
) -> None:
    archive = write_zip(tmp_path / "mine.zip", files)
    assert is_archive(archive)
    folder = unpacked(archive, tmp_path / "imports")
    assert folder.name == name
    found = contents(folder)
    assert set(found) == inside
    assert set(found.values()) <= set(files.values())


def test_the_settings_of_a_sparsify_run_stay_above_its_sae(tmp_path: Path) -> None:
    files = {
        "run/layers.3.mlp/sae.safetensors": "w",
        "run/layers.3.mlp/cfg.json": "{}",
        "run/config.json": "above",
        "run/other.txt": "",
    }
    folder = unpacked(write_zip(tmp_path / "a.zip", files), tmp_path / "imports")
    assert {name for name in contents(folder.parent) if not name.startswith(".")} == {
        "config.json", "layers.3.mlp/cfg.json", "layers.3.mlp/sae.safetensors",
    }  # fmt: skip


def test_only_a_folder_that_was_unpacked_is_known_as_one(tmp_path: Path) -> None:
    parent = tmp_path / "imports"
    folder = unpacked(write_zip(tmp_path / "a.zip", {"mine/ae.pt": "w"}), parent)
    theirs = parent / "0123456789abcdef" / "mine"
    theirs.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(folder)
    for path in (folder, folder.parent, folder / "ae.pt", link):
        assert unpacked_folder(path, parent) == folder.parent
    for path in (theirs, theirs.parent, parent, tmp_path, parent / "absent" / "x"):
        assert unpacked_folder(path, parent) is None


def test_a_zip_is_unpacked_once_until_it_changes(tmp_path: Path) -> None:
    parent = tmp_path / "imports"
    archive = write_zip(tmp_path / "a.zip", {"ae.pt": "one"})
    first = unpacked(archive, parent)
    inode = first.stat().st_ino
    assert unpacked(archive, parent).stat().st_ino == inode
    write_zip(archive, {"ae.pt": "other"})
    assert contents(unpacked(archive, parent)) == {"ae.pt": "other"}
    assert contents(first) == {"ae.pt": "one"}  # a queued run may still read it


@pytest.mark.parametrize("name", ["../ae.pt", "/tmp/ae.pt", "a/../../ae.pt", "..\\ae.pt"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    archive = write_zip(tmp_path / "a.zip", {"ae.pt": "w", name: "x"})
    with pytest.raises(UserError, match=r"has the path .*; unpack it yourself"):
        unpacked(archive, tmp_path / "imports")
    assert not (tmp_path / "imports").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO])
def test_a_link_is_refused(tmp_path: Path, kind: int) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        link = zipfile.ZipInfo("ae.pt")
        link.external_attr = (kind | 0o777) << 16
        file.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="is a link or no ordinary file"):
        unpacked(archive, tmp_path / "imports")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "holds no SAE"),
        ({"pages/index.html": "x"}, "holds no SAE: none of .* take SAE"),
        ({"a/ae.pt": "x", "b/ae.pt": "x"}, "several SAEs, in the folders a, b;"),
        ({"ae.pt": "x" * 101}, "unpacks to 101 bytes, and at most 100"),
        ({f"{n}.txt": "" for n in range(6)}, "has 6 entries, and at most 5"),
    ],
)
def test_a_zip_without_one_sae_of_a_possible_size_is_refused(
    tmp_path: Path, files: dict[str, str], words: str
) -> None:
    archive = write_zip(tmp_path / "a.zip", files)
    with pytest.raises(UserError, match=words):
        unpacked(archive, tmp_path / "imports", max_entries=5, max_bytes=100)


@pytest.mark.parametrize("damage", ["cut", "text", "bits"])
def test_a_damaged_zip_is_refused_in_one_sentence_and_leaves_nothing(
    tmp_path: Path, damage: str
) -> None:
    archive = write_zip(tmp_path / "a.zip", {"ae.pt": "some weights " * 100})
    data = bytearray(archive.read_bytes())
    if damage == "cut":
        data = data[:-30]
    elif damage == "text":
        data = bytearray(b"<html>Not found</html>")
    else:
        data[40] ^= 0xFF
    archive.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.zip' cannot be unpacked .*; download or copy"):
        unpacked(archive, tmp_path / "imports")
    assert not contents(tmp_path / "imports")


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", {"ae.pt": "w"})
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(UserError, match="is encrypted"):
        unpacked(archive, tmp_path / "imports")
