"""Numbers, durations and ages as text, the same on every page."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from sae_engine.schema.config import SAEConfig
from sae_engine.schema.features import Density
from sae_engine.schema.records import METRICS

DASH = "–"
UNSET = "unset"
"""An optional setting without a value."""


def number(value: float | str | None, *, digits: int = 3) -> str:
    """A measured value with `digits` significant digits; non-finite values keep their names."""
    if value is None:
        return DASH
    if isinstance(value, str) or not math.isfinite(value):
        return "NaN" if str(value).lower() == "nan" else str(value).replace("Infinity", "∞")
    if value == 0:
        return "0"
    magnitude = abs(value)
    if magnitude < 1e-3:
        return f"{value:.{digits - 1}e}"
    if magnitude >= 10 ** (digits + 1):
        return f"{value:,.0f}"
    decimals = max(0, digits - 1 - math.floor(math.log10(magnitude)))
    return f"{value:,.{decimals}f}"


def count(value: int) -> str:
    """A whole number with thousands separators."""
    return f"{value:,}"


def counted(value: int, noun: str) -> str:
    """A count with its noun, such as `1 run` or `1,024 runs`."""
    return f"{count(value)} {noun}{'' if value == 1 else 's'}"


def ordinal(value: int) -> str:
    """A place in an order, such as `1st` or `12th`."""
    teens = 10 < value % 100 < 14
    return f"{count(value)}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(value % 10, 'th')}"


def queue_place(position: int) -> str:
    """A run's place among the queued ones, such as `2nd in the queue`."""
    return f"{'First' if position == 1 else ordinal(position)} in the queue"


def short_count(value: float) -> str:
    """A count in three significant digits and a unit, such as `500k` or `1.2M`."""
    for scale, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.0f}"


def percent(fraction: float | str | None) -> str:
    """A share in percent with three significant digits."""
    if fraction is None or isinstance(fraction, str):
        return number(fraction)
    return f"{number(fraction * 100)}%"


def gibibytes(size: float) -> str:
    """A size in GiB, or in MiB below 1 GiB."""
    if size < 2**30:
        return f"{size / 2**20:.3g} MiB"
    return f"{size / 2**30:.3g} GiB" if size < 1000 * 2**30 else f"{size / 2**30:,.0f} GiB"


def is_share(metric: str) -> bool:
    """Whether a metric's values are shares, shown in percent; their names say so."""
    return metric.startswith("frac_") or metric.endswith(("_share", "_overlap"))


def metric_text(metric: str, value: float | str | None) -> str:
    """A value of a metric."""
    if value == "NaN" and metric in METRICS and METRICS[metric].may_be_undefined:
        return "not defined"
    return percent(value) if is_share(metric) else number(value)


def width_text(sae: SAEConfig) -> str:
    """An SAE's width, as a multiple of the activation's if that is how it was set."""
    return f"{count(sae.d_sae)} latents" if sae.d_sae else f"{sae.expansion_factor or 8}× width"


def density(value: Density) -> str:
    """A feature's density with its counts."""
    return f"{percent(value.fraction)} ({count(value.fired)} of {count(value.seen)} tokens)"


def duration(seconds: float | None) -> str:
    """A span of time in its two largest units."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    whole = max(0, round(seconds))
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, left = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    if minutes:
        return f"{minutes} min {left:02d} s"
    return f"{left} s"


def roughly(seconds: float) -> str:
    """A forecast of a span of time, without the digits that it cannot know."""
    if not math.isfinite(seconds):
        return DASH
    if seconds < 90:
        return f"{max(5, 5 * math.ceil(seconds / 5))} s"
    minutes = math.ceil(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours = math.ceil(minutes / 60)
    return f"{hours} h" if hours < 48 else f"{math.ceil(hours / 24)} d"


def age(moment: datetime, now: datetime | None = None) -> str:
    """How long ago a moment was, in its largest unit."""
    seconds = ((now or datetime.now(UTC)) - _aware(moment)).total_seconds()
    for scale, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= scale:
            return f"{int(seconds // scale)} {unit} ago"
    return "just now"


def elapsed(
    start: datetime | None, end: datetime | None, now: datetime | None = None
) -> float | None:
    """Seconds between start and end (or now), as two machines may have written them; None before
    the start.
    """
    if start is None:
        return None
    return max(0.0, (_aware(end or now or datetime.now(UTC)) - _aware(start)).total_seconds())


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
