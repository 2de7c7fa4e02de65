"""Damages files: bytes anywhere, or a value somewhere in JSON."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

wounds = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from(["replace", "insert", "drop", "end"]),
        st.binary(max_size=9),
    ),
    min_size=1,
    max_size=3,
)
"""Places, as fractions of the length, what is done there, and new bytes."""


def damaged(content: bytes, wounds: list[tuple[float, str, bytes]]) -> bytes:
    for place, kind, new in wounds:
        at = int(place * len(content))
        rest = {"insert": at, "end": len(content)}.get(kind, at + max(1, len(new)))
        content = content[:at] + (b"" if kind == "drop" else new) + content[rest:]
    return content


odd_values: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 7, 2**31, 2**63, 10**30, 0.5, -0.0, float("inf"), float("nan")]),
    st.sampled_from(["", "x", "\ud800", "\0", "a\nb", "a" * 5000, "../..", "é"]),
    st.sampled_from([[], [[]], {}, [None], {"a": {}}, ["x", 1], {"": 0}]),
)
changes = st.lists(
    st.tuples(st.lists(st.integers(0, 200), max_size=5), odd_values, st.booleans()),
    min_size=1,
    max_size=2,
)
"""Ways into a tree by the numbers of children, what is put there, and whether it is removed."""


def changed_json(content: bytes, changes: list[tuple[list[int], Any, bool]]) -> bytes:
    tree = json.loads(content)
    for way, value, is_removed in changes:
        tree = _changed(tree, way, value, is_removed)
    return json.dumps(tree).encode()


def _changed(tree: Any, way: list[int], value: Any, is_removed: bool) -> Any:
    if not way or not isinstance(tree, dict | list) or not tree:
        return value
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key = keys[way[0] % len(keys)]
    copied = dict(tree) if isinstance(tree, dict) else list(tree)
    if is_removed and len(way) == 1:
        del copied[key]
    else:
        copied[key] = _changed(tree[key], way[1:], value, is_removed)
    return copied
