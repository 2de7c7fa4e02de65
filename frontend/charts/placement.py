"""Where the labels of points go, so that they cover neither each other nor a point.

Pure functions, in pixels of a chart of usual size. Read by the chart of FVU vs. L0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_WIDTH, _HEIGHT = 1000, 350
_LETTER, _LINE = 6, 14
_GAP = 8
"""Between a point's center and its label."""
_SIDES = (
    "top center",
    "bottom center",
    "middle right",
    "middle left",
    "top right",
    "top left",
    "bottom right",
    "bottom left",
)


class _Box(NamedTuple):
    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: _Box) -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.bottom < other.top and other.bottom < self.top


def placed(
    x: Sequence[float], y: Sequence[float], texts: Sequence[str], first: Sequence[str]
) -> list[str | None]:
    """The side of each label, if it is free the one in `first`; None where there is no room.

    `x` and `y` are shares of the chart's width and height. Earlier points choose before later ones.
    """
    at = [(share_x * _WIDTH, share_y * _HEIGHT) for share_x, share_y in zip(x, y, strict=True)]
    taken = [_Box(left - 5, bottom - 5, left + 5, bottom + 5) for left, bottom in at]
    found: list[str | None] = []
    for place, text, wish in zip(at, texts, first, strict=True):
        boxes = {side: _label_box(*place, text, side) for side in (wish, *_SIDES)}
        side = next((s for s, box in boxes.items() if _is_free(box, taken)), None)
        found.append(side)
        if side is not None and text:
            taken.append(boxes[side])
    return found


def _is_free(box: _Box, taken: Sequence[_Box]) -> bool:
    return box.left >= 0 and box.right <= _WIDTH and not any(map(box.meets, taken))


def _label_box(x: float, y: float, text: str, side: str) -> _Box:
    vertical, horizontal = side.split()
    width = _LETTER * len(text)
    left = x + {"left": -width, "center": -width / 2, "right": 0}[horizontal]
    bottom = y + {"top": _GAP, "middle": -_LINE / 2, "bottom": -_GAP - _LINE}[vertical]
    if vertical == "middle":
        left += {"left": -_GAP, "right": _GAP}[horizontal]
    return _Box(left, bottom, left + width, bottom + _LINE)
