"""Files as text: decompressed by their first bytes, decoded as UTF-8 or as what they look like."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO, cast

from sae_engine.errors import ConfigError
from sae_engine.text.notices import TextNotices

SAMPLE_BYTES = 2**18
"""Bytes read to detect an encoding."""
GUESS_BYTES = 2**14
"""Bytes around the first that is not UTF-8, from which the encoding is guessed."""
MAX_EXTRA_CHAOS = 0.02
"""Encodings whose disorder, as `charset_normalizer` measures it, is this close to the least are
compared by their languages.
"""
MAX_STRAY = 5
"""Up to this many invalid bytes in a sample are taken for damage, not for another encoding."""

_BOMS = [
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]
_COMMONEST = "cp1252"
_LEGACY = [
    *(_COMMONEST, "latin_1", "cp1250", "cp1251", "koi8_r", "cp1253", "cp1254", "cp1255", "cp1256"),
    *("cp932", "euc_jp", "gb18030", "big5", "cp949"),
]
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


class Encoding(NamedTuple):
    """How a file's bytes become text."""

    name: str
    is_guess: bool


_UTF_8 = Encoding("utf-8-sig", False)
"""UTF-8, with or without a byte order mark."""


def open_text(path: Path, encoding: str) -> TextIO:
    """The decompressed text of a file; bytes that cannot be decoded become U+FFFD."""
    return io.TextIOWrapper(open_bytes(path), encoding, errors="replace")


def open_bytes(path: Path) -> BinaryIO:
    """A file's bytes, decompressed if they are gzip, bzip2, xz or Zstandard, whatever its name."""
    with path.open("rb") as file:
        magic = file.read(6)
    if magic.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.open(path))
    if magic.startswith(b"BZh"):
        return cast(BinaryIO, bz2.open(path))
    if magic.startswith(b"\xfd7zXZ"):
        return cast(BinaryIO, lzma.open(path))
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        import pyarrow as pa

        stream = pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
        return io.BufferedReader(cast(io.RawIOBase, stream))
    return path.open("rb")


def read_sample(path: Path, num_bytes: int = SAMPLE_BYTES) -> bytes:
    """The first decompressed bytes of a file."""
    with readable(path), open_bytes(path) as file:
        return file.read(num_bytes)


def encoding_of(sample: bytes) -> Encoding | None:
    """The encoding of a file that begins with `sample`; None if it is not text."""
    for mark, name in _BOMS:
        if sample.startswith(mark):
            return Encoding(name, False)
    if name := _utf_16_without_mark(sample):
        return Encoding(name, True)
    if len(_CONTROL.findall(sample)) * 3 > len(sample):
        return None
    is_whole = len(sample) < SAMPLE_BYTES
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(sample, is_whole)
    invalid = text.count("\ufffd") - sample.count("\ufffd".encode())
    beyond_ascii = len(text) - len(text.encode("ascii", "ignore")) - invalid
    if invalid * 10 < beyond_ascii or invalid <= min(MAX_STRAY, len(sample) // 100):
        return _UTF_8
    return _guessed(sample)


def require_encoding(path: Path, sample: bytes, notices: TextNotices) -> str:
    """The name of the encoding of a file that begins with `sample`; a guess is noted.

    Raises `ConfigError` if the file is not text.
    """
    encoding = encoding_of(sample)
    if encoding is None:
        raise unusable(f"'{path}' is not text in a known encoding; convert it to UTF-8.")
    if encoding.is_guess:
        sentence = f"'{path}' is not UTF-8; it is read as {encoding.name}, going by its bytes."
        notices.note(f"encoding {encoding.name}", str(path), sentence)
    return encoding.name


def is_binary(sample: bytes) -> bool:
    """Whether a file is not text: not in any encoding, or UTF-8 with a NUL, as git decides it."""
    encoding = encoding_of(sample)
    return encoding is None or (encoding == _UTF_8 and b"\0" in sample)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raises `ConfigError` for a file that cannot be read or decompressed."""
    try:
        yield
    except PermissionError:
        raise unusable(f"This user may not read '{path}'; change its permissions.") from None
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise _damaged(path) from error
    except OSError as error:
        if error.errno is None:  # bz2, Zstandard
            raise _damaged(path) from error
        raise unusable(f"'{path}' cannot be read: {error.strerror}.") from error


def unusable(message: str) -> ConfigError:
    """An error about the dataset."""
    return ConfigError.of("data.dataset", message)


def _damaged(path: Path) -> ConfigError:
    return unusable(f"'{path}' is damaged or cut off: it cannot be decompressed; copy it again.")


def _utf_16_without_mark(sample: bytes) -> str | None:
    """UTF-16 without a byte order mark, recognized by the zero bytes of its ASCII characters."""
    pairs = len(sample) // 2
    if pairs < 2:
        return None
    even, odd = sample[: 2 * pairs : 2].count(0), sample[1 : 2 * pairs : 2].count(0)
    if max(even, odd) * 2 < pairs or min(even, odd) * 20 > max(even, odd):
        return None
    return "utf-16-be" if even > odd else "utf-16-le"


def _guessed(sample: bytes) -> Encoding | None:
    from charset_normalizer import from_bytes

    try:
        sample.decode("utf-8")
        first = 0
    except UnicodeDecodeError as error:
        first = error.start
    part = sample[max(0, first - GUESS_BYTES // 2) :][:GUESS_BYTES]
    found = from_bytes(part, cp_isolation=_LEGACY)
    if not found:
        return None
    least = min(match.chaos for match in found)
    fitting = [match for match in found if match.chaos <= least + MAX_EXTRA_CHAOS]
    best = max(
        fitting, key=lambda match: (match.coherence, _COMMONEST in match.could_be_from_charset)
    )
    # A match stands for all encodings that read this part alike; they may differ further on.
    return Encoding(_COMMONEST if _COMMONEST in best.could_be_from_charset else best.encoding, True)
