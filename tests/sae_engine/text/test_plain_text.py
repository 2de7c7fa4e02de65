"""Files of plain text: their encoding, compression and division into documents."""

import bz2
import gzip
import lzma
from pathlib import Path

import pyarrow as pa
import pytest

from sae_engine.errors import ConfigError
from sae_engine.text import plain_text
from sae_engine.text.decoding import encoding_of
from sae_engine.text.notices import TextNotices
from sae_engine.text.plain_text import division_of
from tests.sae_engine.text.test_bad_rows import preflight, read

GERMAN = "Die Bäuerin müht sich, die größten Äpfel für den süßen Kuchen zu pflücken.\n\n" * 20
FRENCH = "Le garçon a mangé une crème très sucrée à côté du vieux château.\n\n" * 20
RUSSIAN = "Старый дом стоял на берегу реки, и никто в нём не жил.\n\n" * 20
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたか見当がつかぬ。\n\n" * 20
COMPRESS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        *((text, "utf-8") for text in (GERMAN, FRENCH, RUSSIAN, JAPANESE)),
        *((text, "utf-8-sig") for text in (GERMAN, JAPANESE)),
        *((text, "utf-16") for text in (GERMAN, JAPANESE)),
        *((text, "utf-32") for text in (GERMAN, RUSSIAN)),
        *((GERMAN, name) for name in ("utf-16-le", "utf-16-be", "latin-1")),
        *((text, "cp1252") for text in (GERMAN, FRENCH)),
        *((RUSSIAN, name) for name in ("cp1251", "koi8-r")),
        *((JAPANESE, name) for name in ("cp932", "euc-jp")),
    ],
)
def test_text_is_read_whatever_its_encoding(tmp_path: Path, text: str, encoding: str):
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(encoding))
    assert "\n".join(read(path)) == text.removesuffix("\n")
    is_guess = not encoding.startswith("utf-") or encoding in ("utf-16-le", "utf-16-be")
    assert ["it is read as" in sentence for sentence in preflight(path)] == [True] * is_guess


@pytest.mark.parametrize("bad", [b"\xff", b"\xe9", b"\xc3\x28"])
def test_a_few_bad_bytes_do_not_change_the_encoding(tmp_path: Path, bad: bytes):
    path = tmp_path / "a.txt"
    path.write_bytes(GERMAN.encode() + bad + b" end")
    assert read(path)[-1] == bad.decode("utf-8", "replace") + " end"
    assert "\n".join(read(path)[:-1]) == GERMAN.removesuffix("\n")


@pytest.mark.parametrize("sample", [b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9, bytes(500)])
def test_what_is_not_text_is_refused(tmp_path: Path, sample: bytes):
    assert encoding_of(sample) is None
    path = tmp_path / "a.txt"
    path.write_bytes(sample)
    with pytest.raises(ConfigError, match="is not text in a known encoding"):
        preflight(path)


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", ["a.txt", "a.txt.{}"])
def test_compressed_text_is_recognized_by_its_bytes(tmp_path: Path, suffix: str, name: str):
    path = tmp_path / name.format(suffix)
    path.write_bytes(COMPRESS[suffix](GERMAN.encode("utf-16")))
    assert len(read(path)) == 20
    assert read(path)[0] + "\n" == GERMAN[: len(GERMAN) // 20]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_rows_are_read_and_a_cut_off_file_is_named(tmp_path: Path, suffix: str):
    path = tmp_path / f"a.jsonl.{suffix}"
    rows = b"".join(b'{"text": "document %d %d"}\n' % (n, n**9) for n in range(20_000))
    data = COMPRESS[suffix](rows)
    path.write_bytes(data)
    texts = read(path)
    assert (len(texts), texts[7]) == (20_000, f"document 7 {7**9}")
    path.write_bytes(data[: len(data) * 9 // 10])
    with pytest.raises(ConfigError, match=f"'{path}' is damaged or cut off"):
        read(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, name: str):
    content = {"a.jsonl": '{"text": "first"}', "a.csv": "text\nfirst", "a.txt": "first"}[name]
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8-sig"))
    assert read(path) == ["first"]


LINES = [f"Sentence {n} stands on a line of its own." for n in range(300)]


@pytest.mark.parametrize(
    ("text", "division"),
    [
        ("\n".join(LINES), "lines"),
        ("\n".join(LINES[:150]) + "\n\n\n" + "\n".join(LINES), "lines"),
        ("\n\n".join(LINES), "paragraphs"),
        ("one\ntwo\n\nthree\n", "paragraphs"),
        ("only one line\n", "paragraphs"),
        ("", "paragraphs"),
    ],
)
def test_text_without_blank_lines_is_divided_into_lines(text: str, division: str):
    assert division_of(text) == division


def test_the_division_is_said_and_can_be_set(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(LINES))
    assert read(path) == LINES
    [sentence] = preflight(path)
    assert sentence.startswith(f"Each line of '{path}' is a document")
    for division in ("paragraphs", "file"):
        notices = TextNotices()
        assert read(path, notices, documents=division) == ["\n".join(LINES)]
        assert notices.sentences == []
    path.write_text("one\n\ntwo\n")
    assert read(path) == ["one\n", "two\n"]
    assert read(path, documents="lines") == ["one", "two"]
    assert read(path, documents="file") == ["one\n\ntwo\n"]


@pytest.mark.parametrize("division", ["paragraphs", "lines", "file"])
@pytest.mark.parametrize("joint", ["\n", " "])
def test_a_text_without_end_is_cut_into_documents(tmp_path, monkeypatch, division, joint):
    monkeypatch.setattr(plain_text, "MAX_DOCUMENT_CHARS", 100)
    path = tmp_path / "a.txt"
    path.write_text(joint.join(LINES))
    texts = read(path, documents=division)
    assert max(map(len, texts)) <= 100
    glue = "\n" if joint == "\n" and division == "lines" else ""
    assert glue.join(texts) == joint.join(LINES)
    if joint == "\n":
        assert all(text.removesuffix("\n").endswith(".") for text in texts)


def test_rows_are_read_whatever_their_encoding_and_a_guess_is_said(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_bytes(("text;id\n" + f"{FRENCH.split(chr(10))[0]};1\n" * 20).encode("cp1252"))
    assert read(path) == [FRENCH.split("\n")[0]] * 20
    assert preflight(path) == [f"'{path}' is not UTF-8; it is read as cp1252, going by its bytes."]
