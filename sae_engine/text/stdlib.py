"""The embedded corpus `python-stdlib`: the text of the running interpreter's standard library.

Source files with their docstrings, the language reference's topics as `help()` shows them, and the
docstrings of built-in modules. Tests and data tables are left out. A file is held out by a hash of
its name, so the split is the same on every machine, and neither the embedded language model nor an
SAE is trained on a held-out file. Held-out documents that repeat training text are left out.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from sae_engine.text.documents import Document, Split
from sae_engine.text.duplicates import shared_fractions

EMBEDDED_CORPUS = "python-stdlib"
HELDOUT_PERCENT = 12
MOST_SHARED = 0.05
"""Largest fraction of a held-out document that may occur in training text."""
DOCUMENT_CHARS = 6_000
"""A source file is cut into documents of about this many characters, at top-level statements."""
SHORTEST_DOCUMENT_CHARS = 120
"""Shorter files are package markers with nearly identical texts, and are left out."""

_SKIPPED_FOLDERS = {
    *("site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"),
    *("__pycache__", "turtledemo", "macholib", "lib-dynload", "_bundled", "msilib"),
}
_SKIPPED_FILES = {
    *("stringprep.py", "locale.py", "_compat_pickle.py", "_casefix.py"),
    *("entities.py", "mimetypes.py", "this.py"),
}
_SKIPPED_PREFIXES = ("_sysconfigdata", "config-")


class EmbeddedCorpus:
    """The embedded corpus as a `TextSource`, with its own split."""

    is_unbounded = False

    def check(self) -> None:
        """Nothing to check: it is always available."""

    def require(self) -> None:
        """Makes no request to the hub."""

    def division(self) -> None:
        return None

    def contents(self) -> str:
        texts = (document.text.encode() for document in named_documents())
        return hashlib.sha256(b"\0".join(texts)).hexdigest()

    def documents(self, split: Split, start: int) -> Iterator[Document]:
        return (Document(number, text) for number, text in enumerate(stdlib_documents(split)))


class SourceText(NamedTuple):
    """The text of one file or topic, under a name that is the same on every machine."""

    name: str
    text: str


def _library_files(root: Path) -> Iterator[SourceText]:
    for folder, folders, files in os.walk(root):
        # Not entered: site-packages holds far more files than the library itself.
        folders[:] = [name for name in folders if not _is_skipped(name, _SKIPPED_FOLDERS)]
        for name in files:
            if not name.endswith(".py") or _is_skipped(name, _SKIPPED_FILES):
                continue
            path = Path(folder, name)
            try:
                text = path.read_text("utf-8")
            except (UnicodeDecodeError, OSError):
                continue
            yield SourceText(path.relative_to(root).as_posix(), text)


def _is_skipped(name: str, skipped: set[str]) -> bool:
    return name in skipped or name.startswith(_SKIPPED_PREFIXES)


def _help_topics() -> Iterator[SourceText]:
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return
    for key in sorted(topics):
        yield SourceText(f"topic/{key}", topics[key])


def _builtin_docstrings() -> Iterator[SourceText]:
    for module_name in sorted(sys.builtin_module_names):
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            continue
        parts: list[str] = []
        for name, value in sorted(vars(module).items()):
            if name.startswith("_") or not (inspect.isroutine(value) or inspect.isclass(value)):
                continue
            members = [(name, value)]
            if inspect.isclass(value):
                members += [
                    (f"{name}.{m}", v) for m, v in sorted(vars(value).items()) if m[0] != "_"
                ]
            parts += [f"{n}\n    {d}" for n, v in members if len(d := inspect.getdoc(v) or "") > 40]
        if parts:
            yield SourceText(f"builtin/{module_name}", "\n\n".join(parts))


def is_heldout(name: str) -> bool:
    """Whether the file called `name` is held out."""
    return hashlib.sha256(name.encode()).digest()[0] * 100 < HELDOUT_PERCENT * 256


def documents_of(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > 2 * DOCUMENT_CHARS:
        # Cut before a top-level statement (an empty line, then an unindented line) if possible.
        window = text[start + DOCUMENT_CHARS : start + 2 * DOCUMENT_CHARS]
        cut = re.search(r"\n\n(?=\S)", window) or re.search(r"\n\n", window)
        end = start + DOCUMENT_CHARS + (cut.end() if cut else len(window))
        yield text[start:end]
        start = end
    if text[start:].strip():
        yield text[start:]


def stdlib_documents(split: Split) -> list[str]:
    """The documents of one split, in the order of their names' hashes.

    Raises `ValueError` if the interpreter has no library sources, as in some frozen builds.
    """
    return list(_documents(split))


@cache  # a run reads the text from its beginning several times
def _documents(split: Split) -> tuple[str, ...]:
    documents = named_documents()
    train = tuple(d.text for d in documents if not is_heldout(d.name))
    if split == "train":
        return train
    heldout = [d.text for d in documents if is_heldout(d.name)]
    fractions = shared_fractions(heldout, train)
    return tuple(d for d, shared in zip(heldout, fractions, strict=True) if shared <= MOST_SHARED)


@cache
def named_documents() -> tuple[SourceText, ...]:
    """All documents in the order of the hashes of their names; a document has the name of its file.
    They are read once per process.

    Raises `ValueError` as `stdlib_documents` does.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    keyed = [
        (hashlib.sha256(f"{source.name}#{number}".encode()).digest(), source._replace(text=text))
        for source in (*_library_files(root), *_help_topics(), *_builtin_docstrings())
        for number, text in enumerate(documents_of(source.text))
        if len(text) >= SHORTEST_DOCUMENT_CHARS
    ]
    if not keyed:
        raise ValueError(f"This Python has no standard-library sources under {root}.")
    return tuple(document for _, document in sorted(keyed))
