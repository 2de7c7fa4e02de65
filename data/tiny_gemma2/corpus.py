"""The text that the embedded model is trained on.

The training split of `python-stdlib`, and the source files of a few packages that `make test`
installs. Docstrings and comments are documents of their own as well, so that the model also reads
English that is not interrupted by code. Nothing that stands in held-out text is among them.

Read by `train`.
"""

from __future__ import annotations

import ast
import inspect
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from sae_engine.text.duplicates import shared_fractions
from sae_engine.text.stdlib import MOST_SHARED, documents_of, stdlib_documents

STDLIB_REPEATS = 3
"""The standard library is what SAEs are trained on, so the model reads it more than once."""
SHORTEST_PROSE_CHARS = 300
PACKAGES = {
    "numpy scipy pandas sklearn networkx torch": 1_000_000,
    "sympy nltk sqlalchemy streamlit datasets pydantic": 400_000,
    "transformers hypothesis statsmodels werkzeug joblib": 400_000,
    "requests fastapi starlette httpx click jinja2": 200_000,
    "rich anyio coverage _pytest alembic fsspec": 200_000,
}
"""Most characters of each package, so that none drowns the others."""
_SKIPPED_FOLDERS = {"tests", "testing", "_vendor", "externals", "locale", "models"}


def training_documents(seed: int = 0) -> list[str]:
    """All documents in a random order; those of the standard library stand in it three times."""
    stdlib = stdlib_documents("train")
    stdlib += [prose for document in stdlib for prose in prose_of(document)]
    heldout = stdlib_documents("heldout")
    others = [
        document
        for names, most in PACKAGES.items()
        for name in names.split()
        for document in package_documents(name, most)
    ]
    shared = shared_fractions(others, heldout)
    others = [d for d, s in zip(others, shared, strict=True) if s <= MOST_SHARED]
    documents = stdlib * STDLIB_REPEATS + others
    random.Random(seed).shuffle(documents)
    return documents


def package_documents(name: str, most_characters: int) -> Iterator[str]:
    """Source files of an installed package in a random order, each followed by its prose."""
    root = Path(sysconfig.get_paths()["purelib"]) / name
    paths = sorted(p for p in root.rglob("*.py") if not _SKIPPED_FOLDERS.intersection(p.parts))
    random.Random(name).shuffle(paths)
    left = most_characters
    for path in paths:
        text = path.read_text("utf-8", errors="replace")
        for document in (*documents_of(text), *prose_of(text)):
            left -= len(document)
            if left < 0:
                return
            yield document


def prose_of(source: str) -> list[str]:
    """The longer docstrings of Python source, and its longer comments; nothing if it does not
    parse.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    docstrings = [ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, kinds)]
    candidates = [*filter(None, docstrings), *_comments(source)]
    return [text for text in candidates if len(text) >= SHORTEST_PROSE_CHARS]


def _comments(source: str) -> Iterator[str]:
    lines: list[str] = []
    for line in [*source.splitlines(), ""]:
        stripped = line.strip()
        if stripped.startswith("#"):
            lines.append(stripped[1:])
        elif lines:
            yield inspect.cleandoc("\n".join(lines))
            lines = []
