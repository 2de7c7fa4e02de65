"""No input stands in a placeholder.

A placeholder is emptied each time it is drawn. If the browser draws in between, an input in it is
built anew and can send its default instead of what was typed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.house.repository import ROOT


def filled_placeholders(tree: ast.Module) -> Iterator[int]:
    """Lines that draw elements into an `st.empty()`, rather than HTML."""

    def is_placeholder(node: ast.expr) -> bool:
        named = isinstance(node, ast.Name) and node.id in names
        return named or ast.unparse(node) == "st.empty()"

    names = {
        name.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and "st.empty()" in ast.unparse(node.value)
        for target in node.targets
        for name in ast.walk(target)
        if isinstance(name, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.With) and any(is_placeholder(i.context_expr) for i in node.items):
            yield node.lineno
        if not isinstance(node, ast.Attribute) or node.attr in ("html", "empty"):
            continue
        if is_placeholder(node.value):
            yield node.lineno


def test_the_pages_put_only_html_into_placeholders() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / "frontend").rglob("*.py"))
        for line in filled_placeholders(ast.parse(path.read_text("utf-8")))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("place = st.empty()\nplace.html('')\nplace.empty()", []),
        ("place = st.empty()\nwith place.container():\n    pass", [2]),
        ("a, b = st.empty(), st.empty()\nwith b:\n    pass", [2]),
        ("st.empty().number_input('n')", [1]),
    ],
)
def test_an_input_in_a_placeholder_is_found(code: str, lines: list[int]) -> None:
    assert list(filled_placeholders(ast.parse(code))) == lines
