"""What a run would take here, before it is started, as HTML."""

from __future__ import annotations

from frontend.html.blocks import notice
from frontend.html.format import DASH, count, duration, gibibytes, short_count
from frontend.html.tokens import escaped
from sae_engine.schema.machine import Forecast


def forecast_block(forecast: Forecast) -> str:
    """Figures side by side, and each warning framed."""
    num_runs, disk = forecast.num_runs, forecast.disk_bytes
    memory = " + ".join(f"{part.name} {gibibytes(part.bytes)}" for part in forecast.memory)
    told = f"from {forecast.seconds_from}" if forecast.seconds_from else "nothing like it was "
    told += "" if forecast.seconds_from else f"measured on {forecast.slot_device} yet"
    facts = [
        _fact(
            f"Memory of {forecast.slot_device}",
            gibibytes(forecast.memory_bytes),
            f"{gibibytes(forecast.memory_free_bytes)} free",
            tip=memory,
            bad=forecast.memory_bytes > forecast.memory_free_bytes,
        ),
        _fact(
            "Disk of all runs, at most" if num_runs > 1 else "Disk, at most",
            gibibytes(disk),
            f"{gibibytes(forecast.disk_free_bytes)} free",
            tip=f"A checkpoint takes {gibibytes(forecast.checkpoint_bytes)}.",
            bad=disk > forecast.disk_free_bytes,
        ),
        _fact(
            "Training time",
            DASH if forecast.seconds is None else f"about {duration(forecast.seconds)}",
            told,
        ),
        _fact(
            "First SAE" if num_runs > 1 else "SAE",
            f"{short_count(forecast.parameters)} parameters",
            f"{count(forecast.d_in)} → {count(forecast.d_sae)}",
        ),
    ]
    together = _together(num_runs, forecast.num_passes) if num_runs > 1 else ""
    warnings = "".join(notice(text, level="warning") for text in forecast.warnings)
    return f'{together}<div class="wb-forecast">{"".join(facts)}</div>{warnings}'


def _together(num_runs: int, num_passes: int) -> str:
    how = (
        "They share one pass of the language model."
        if num_passes == 1
        else f"They take {num_passes} passes of the language model, one after another in a slot; "
        "the memory is that of the largest."
        if num_passes < num_runs
        else "Each takes a pass of the language model of its own, one after another in a slot."
    )
    return f'<p class="wb-muted">{how}</p>'


def _fact(title: str, value: str, note: str, *, tip: str = "", bad: bool = False) -> str:
    css = "wb-fact bad" if bad else "wb-fact"
    return (
        f'<div class="{css}" title="{escaped(tip)}"><span>{escaped(title)}</span>'
        f"<strong>{escaped(value)}</strong><small>{escaped(note)}</small></div>"
    )
