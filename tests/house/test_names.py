"""Names in backticks, in documents and docstrings, exist."""

from __future__ import annotations

import ast
import builtins
import keyword
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from backend.settings import Settings
from sae_engine.schema.fields import field_names
from sae_engine.schema.records import METRICS
from tests.house.repository import ROOT, tracked_files

_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?:\(\))?")
_SOURCES = [
    path for path in tracked_files() if path.suffix == ".py" and path.name != "test_names.py"
]
_DOCUMENTS = [path for path in tracked_files() if path.suffix == ".md"]
_FOREIGN = {
    # Names of other programs, which none of our sources holds.
    *("EventSource", "Plotly", "react", "plotly_chart", "add_rows", "switch_page", "huggingface"),
    *("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "THP_MEM_ALLOC_ENABLE", "PIP_ARGS"),
    *("analyze_features", "openwebtext", "freq_hist_data", "CITATION", "cff", "w_enc"),
}


@cache
def _trees() -> dict[Path, ast.Module]:
    return {path: ast.parse((ROOT / path).read_text("utf-8")) for path in _SOURCES}


@cache
def _packages() -> set[str]:
    """Modules of the standard library and of what is installed."""
    return set(packages_distributions()) | sys.stdlib_module_names


def _defined(tree: ast.Module) -> Iterator[str]:
    """Everything that a file defines, names or holds as a short string."""
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.name
            case ast.Name():
                yield node.id
            case ast.Attribute():
                yield node.attr
            case ast.arg():
                yield node.arg
            case ast.keyword(arg=str(name)):
                yield name
            case ast.alias():
                yield from node.name.split(".")
            case ast.Constant(value=str(text)) if len(text) < 60:
                yield from re.findall(r"\w+", text)
            case _:
                pass


@cache
def _known() -> set[str]:
    """Single names that exist."""
    known = {name for tree in _trees().values() for name in _defined(tree)}
    for path in tracked_files():
        known |= {*path.with_suffix("").parts, path.name}
    for path in field_names():
        known |= set(path.split("."))
    known |= {f"SAE_WORKBENCH_{name.upper()}" for name in Settings.model_fields}
    known |= set(METRICS) | set(dir(builtins)) | set(keyword.kwlist)
    return known | _packages() | _FOREIGN


@cache
def _modules() -> set[str]:
    """Every tail of a module's dotted name, such as `index.reader`."""
    tails: set[str] = set()
    for path in _SOURCES:
        parts = [part for part in path.with_suffix("").parts if part != "__init__"]
        tails |= {".".join(parts[start:]) for start in range(len(parts))}
    return tails


def _exists(name: str) -> bool:
    """Whether a name, dotted or not, can be found."""
    *owners, last = name.removesuffix("()").split(".")
    if not owners:
        return last in _known()
    dotted = ".".join([*owners, last])
    if dotted in _modules() or dotted in field_names():
        return True
    if owners[0] in _packages():
        return True
    is_module = ".".join(owners) in _modules()
    return (is_module or all(owner in _known() for owner in owners)) and last in _known()


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """Docstrings of modules, classes, functions and attributes."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                text = statement.value.value
                if isinstance(text, str):
                    yield text


def _missing(text: str) -> set[str]:
    quoted = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    names = {name for name in quoted if _NAME.fullmatch(name)}
    return {name for name in names if not _exists(name)}


@pytest.mark.parametrize("document", _DOCUMENTS, ids=str)
def test_names_in_a_document_exist(document: Path) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / document).read_text("utf-8"), flags=re.DOTALL)
    assert _missing(text) == set()


@pytest.mark.parametrize("package", ["sae_engine", "backend", "frontend", "benchmarks", "tests"])
def test_names_in_docstrings_exist(package: str) -> None:
    missing = {
        f"{path}: {name}"
        for path, tree in _trees().items()
        if path.parts[0] == package
        for text in _docstrings(tree)
        for name in _missing(text)
    }
    assert missing == set()


def test_a_missing_name_is_detected() -> None:
    assert _missing("`NoSuchClass` reads `no_such.module` and `kernels.no_such_module`") == {
        "NoSuchClass",
        "no_such.module",
        "kernels.no_such_module",
    }
    assert _missing("`TopKSAE`, `features.index.reader`, `sae.k`, `RunConfig.pass_key`") == set()
