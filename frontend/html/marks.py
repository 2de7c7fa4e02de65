"""What people write about features, shown wherever a feature's number stands: label and star."""

from __future__ import annotations

from frontend.html.tokens import escaped
from sae_engine.schema.features import Feature

STAR = '<span class="wb-star" role="img" aria-label="Starred" title="Starred">★</span>'


def mark(label: str | None, *, starred: bool) -> str:
    """The feature's star and label; empty for a feature without either."""
    star = STAR if starred else ""
    text = f'<span class="wb-named">{escaped(label)}</span>' if label else ""
    return " ".join(part for part in (star, text) if part)


def mark_line(label: str | None, *, starred: bool) -> str:
    """The same on a separate line, in small type."""
    return f'<span class="wb-sub">{mark(label, starred=starred)}</span>'


def named(feature: Feature) -> str:
    """A feature's label, or else its provisional name."""
    if feature.label or not feature.name:
        return mark(feature.label, starred=False)
    tip = "Provisional: the word that describes this feature best"
    return f'<span class="wb-provisional" title="{tip}">{escaped(feature.name)}</span>'
