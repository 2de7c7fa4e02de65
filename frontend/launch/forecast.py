"""A run's expected use of this machine, as HTML."""

from __future__ import annotations

from frontend.html.blocks import notice
from frontend.html.format import DASH, count, gibibytes, roughly, short_count
from frontend.html.tokens import escaped
from sae_engine.schema.machine import Forecast


def forecast_block(forecast: Forecast) -> str:
    """Memory, disk, time and size side by side, and each warning in a frame."""
    num_runs, disk, device = forecast.num_runs, forecast.disk_bytes, forecast.slot_device
    kind = "CPU" if device.endswith("cpu") else "GPU"
    memory = " + ".join(f"{part.name} {gibibytes(part.bytes)}" for part in forecast.memory)
    basis = forecast.seconds_from
    facts = [
        _fact(
            f"{'CPU' if device == 'cpu' else device} memory",
            gibibytes(forecast.memory_bytes),
            f"{gibibytes(forecast.memory_free_bytes)} free",
            tip=memory,
            bad=forecast.memory_bytes > forecast.memory_free_bytes,
        ),
        _fact(
            "Disk for all runs (at most)" if num_runs > 1 else "Disk (at most)",
            gibibytes(disk),
            f"{gibibytes(forecast.disk_free_bytes)} free",
            tip=f"One checkpoint takes {gibibytes(forecast.checkpoint_bytes)}.",
            bad=disk > forecast.disk_free_bytes,
        ),
        _fact(
            "Training time",
            DASH if forecast.seconds is None else f"about {roughly(forecast.seconds)}",
            basis or f"no similar run on this {kind} yet",
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
        "All runs share one pass over the text."
        if num_passes == 1
        else f"The runs take {num_passes} passes over the text, one after another; memory is that "
        "of the largest pass."
        if num_passes < num_runs
        else "Each run takes its own pass over the text, one after another."
    )
    return f'<p class="wb-muted">{how}</p>'


def _fact(title: str, value: str, note: str, *, tip: str = "", bad: bool = False) -> str:
    css = "wb-fact bad" if bad else "wb-fact"
    return (
        f'<div class="{css}" title="{escaped(tip)}"><span>{escaped(title)}</span>'
        f"<strong>{escaped(value)}</strong><small>{escaped(note)}</small></div>"
    )
