"""FVU vs. L0 of runs: how well they reconstruct with how few latents, as a Plotly figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from frontend.charts.figure import GRAY, TEAL, Figure, Trace, margin
from frontend.charts.placement import placed
from frontend.html.format import number
from frontend.html.tokens import plotly_text
from sae_engine.schema.config import DataConfig
from sae_engine.schema.runs import Run

MOST_LABELED = 12
"""With more points, only those of the Pareto front are labeled."""
MOST_LABELED_FRONT = 100
LABEL_CHARS = 28
_LOGARITHMIC_FROM = 4
"""An axis is logarithmic if its largest value is this many times its smallest."""


class Point(NamedTuple):
    """A run and its metrics on held-out text."""

    run: Run
    l0: float
    fvu: float


class Place(NamedTuple):
    """What runs must share for their held-out metrics to be comparable: model, hook, text."""

    model: str
    hook: str
    text: tuple[str, ...]

    @property
    def title(self) -> str:
        return " · ".join((self.model, self.hook, " + ".join(self.text)))


def place_of(run: Run) -> Place:
    """Where a run's activations come from."""
    config = run.config
    if config.data.activations is not None:
        text = (config.data.activations,)
    else:
        text = tuple(
            " ".join(filter(None, (data.dataset, data.subset, _not_usual(data))))
            for data in config.data.datasets
        )
    return Place(config.model.name, config.hook_name, text)


def _not_usual(data: DataConfig) -> str:
    parts = (("split", "train"), ("text_column", "text"))
    return " ".join(getattr(data, name) for name, usual in parts if getattr(data, name) != usual)


def by_place(points: Sequence[Point]) -> dict[Place, list[Point]]:
    """The points by what makes them comparable, the largest set first."""
    found: dict[Place, list[Point]] = {}
    for point in points:
        found.setdefault(place_of(point.run), []).append(point)
    return dict(sorted(found.items(), key=lambda each: -len(each[1])))


def held_out(runs: Sequence[Run]) -> list[Point]:
    """The runs that have been evaluated, in the same order."""
    points: list[Point] = []
    for run in runs:
        l0, fvu = (_finite(run, name) for name in ("eval_l0", "eval_fvu"))
        if l0 is not None and fvu is not None:
            points.append(Point(run, l0, fvu))
    return points


def _finite(run: Run, metric: str) -> float | None:
    value = run.metrics.get(metric)
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def frontier(points: Sequence[Point]) -> list[Point]:
    """The Pareto front: no other point has both an L0 and an FVU as low."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.l0, p.fvu)):
        if not best or point.fvu < best[-1].fvu:
            best.append(point)
    return best


def pareto_figure(
    points: Sequence[Point], *, colors: Mapping[str, str] | None = None, height: int = 420
) -> Figure:
    """Runs as points, their Pareto front as a staircase; `colors` are keyed by run id."""
    edge = frontier(points)
    texts, sides = _labels(points, edge)
    line: Trace = {
        "type": "scatter",
        "uid": "frontier",
        "mode": "lines",
        "x": [point.l0 for point in edge],
        "y": [point.fvu for point in edge],
        "line": {"color": GRAY, "width": 1.5, "dash": "dot", "shape": "hv"},
        "hoverinfo": "skip",
    }
    marks: Trace = {
        "type": "scatter",
        "uid": "runs",
        "mode": "markers+text",
        "text": texts,
        "textposition": sides,
        "textfont": {"size": 11},
        "cliponaxis": False,
        "x": [point.l0 for point in points],
        "y": [point.fvu for point in points],
        "customdata": [point.run.id for point in points],
        "hovertext": [_text(point) for point in points],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "marker": {
            "size": 11 if len(points) < 100 else 8,
            "opacity": 0.9,
            "color": [(colors or {}).get(point.run.id, TEAL) for point in points],
            "symbol": ["circle" if point in edge else "circle-open" for point in points],
            "line": {"width": 1.5},
        },
    }
    layout = {
        "height": height,
        "margin": margin(60, 16, 12, 44),
        "hovermode": "closest",
        "showlegend": False,
        "uirevision": "pareto",
        "xaxis": _axis("active latents per token (held-out L0)", [p.l0 for p in points]),
        "yaxis": _axis("unexplained variance (held-out FVU)", [p.fvu for p in points]),
    }
    return Figure(data=[line, marks], layout=layout)


def _axis(title: str, values: Sequence[float]) -> dict[str, object]:
    axis: dict[str, object] = {"title": {"text": title, "font": {"size": 12}}, "zeroline": False}
    low, high = min(values, default=0), max(values, default=0)
    if not _is_logarithmic(low, high):
        return axis
    ticks = _round_numbers(low, high)
    texts = [f"{tick:g}" for tick in ticks]
    return axis | {"type": "log", "tickvals": ticks, "ticktext": texts}


def _round_numbers(low: float, high: float) -> list[float]:
    """Round numbers from below `low` to above `high`: 1, 2, 3, 5, 7 times powers of ten."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    return [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 3, 5, 7)]


def _label(point: Point, *, is_front: bool, among: int) -> str:
    """A run's name, shortened; empty where labels would cover each other."""
    if among > (MOST_LABELED_FRONT if is_front else MOST_LABELED):
        return ""
    name = point.run.name
    short = name if len(name) <= LABEL_CHARS else f"{name[: LABEL_CHARS - 1]}…"
    return plotly_text(short)


def _labels(points: Sequence[Point], edge: Sequence[Point]) -> tuple[list[str], list[str]]:
    """Texts and sides of the labels that have room; those of the front choose first."""
    texts = [_label(point, is_front=point in edge, among=len(points)) for point in points]
    x, y = (_shares(values) for values in ([p.l0 for p in points], [p.fvu for p in points]))
    wishes = _inward([point.l0 for point in points])
    order = sorted(range(len(points)), key=lambda n: points[n] not in edge)
    found = placed(
        [x[n] for n in order],
        [y[n] for n in order],
        [texts[n] for n in order],
        [wishes[n] for n in order],
    )
    side_of = dict(zip(order, found, strict=True))
    sides = [side_of[n] for n in range(len(points))]
    return (
        [text if side else "" for text, side in zip(texts, sides, strict=True)],
        [side or wish for side, wish in zip(sides, wishes, strict=True)],
    )


def _shares(values: Sequence[float]) -> list[float]:
    """Where values lie on their axis, from 0 to 1."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if low == high:
        return [0.5] * len(values)
    if _is_logarithmic(low, high):
        return [math.log(value / low) / math.log(high / low) for value in values]
    return [(value - low) / (high - low) for value in values]


def _is_logarithmic(low: float, high: float) -> bool:
    return low > 0 and high >= _LOGARITHMIC_FROM * low


def _inward(x: Sequence[float]) -> list[str]:
    """Where labels go, so that those at the edges stay inside the chart."""
    low, high = min(x, default=0.0), max(x, default=0.0)
    if low == high:
        return ["top center"] * len(x)
    return [
        "top right" if value == low else "top left" if value == high else "top center"
        for value in x
    ]


def _text(point: Point) -> str:
    run = point.run
    width = run.d_sae
    sizes = [f"{width:,} latents"] if width and run.config.sae.pretrained is None else []
    facts = [*sizes, f"L0 {number(point.l0)}", f"FVU {number(point.fvu)}", run.status]
    return f"<b>{plotly_text(run.name)}</b><br>{' · '.join(facts)}"
