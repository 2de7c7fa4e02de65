"""Load of the machine as HTML: GPUs, CPU, memory, disk."""

from __future__ import annotations

from frontend.html.format import counted, gibibytes
from frontend.html.tokens import escaped
from sae_engine.schema.machine import Device, System

HOT_CELSIUS = 85
FULL = 0.9


def is_of_cluster(device: str | None) -> bool:
    """Whether the meters here are of the server and not of the device's machine."""
    return device is not None and "/" in device


def device_panel(system: System, *, device: str | None = None) -> str:
    """Meters of the machine; of its GPUs only `device`, if one is given."""
    gpus = [gpu for gpu in system.devices if device in (None, "cuda", gpu.id)]
    used = system.disk_total_bytes - system.disk_free_bytes
    meters = [
        *(_gpu(gpu) for gpu in gpus),
        _meter(
            counted(system.num_cpus, "CPU"), system.cpu_utilization, f"{system.cpu_utilization:.0%}"
        ),
        _memory("Memory", system.memory_used_bytes, system.memory_total_bytes),
        _meter(
            "Disk",
            used / max(1, system.disk_total_bytes),
            f"{gibibytes(system.disk_free_bytes)} free",
            alarming=True,
        ),
    ]
    return f'<div class="wb-meters">{"".join(meters)}</div>'


def _gpu(gpu: Device) -> str:
    name = f"<strong>{escaped(gpu.id)}</strong> {escaped(gpu.name)}"
    parts = [f'<span class="wb-gpu">{name}</span>']
    if gpu.utilization is not None:
        parts.append(_meter("Utilization", gpu.utilization, f"{gpu.utilization:.0%}"))
    if gpu.memory_used_bytes is not None and gpu.memory_total_bytes is not None:
        parts.append(_memory("GPU memory", gpu.memory_used_bytes, gpu.memory_total_bytes))
    if gpu.temperature_celsius is not None:
        share = gpu.temperature_celsius / 100
        hot = gpu.temperature_celsius >= HOT_CELSIUS
        value = f"{gpu.temperature_celsius:.0f} °C"
        parts.append(_meter("Temperature", share, value, css="bad" if hot else ""))
    return "".join(parts)


def _memory(title: str, used: int, total: int) -> str:
    value = f"{gibibytes(used)} of {gibibytes(total)}"
    return _meter(title, used / max(1, total), value, alarming=True)


def _meter(title: str, share: float, value: str, *, alarming: bool = False, css: str = "") -> str:
    """A bar with its value; an `alarming` one turns red when it is nearly full."""
    css = "bad" if alarming and share >= FULL else css
    width = min(max(share, 0.0), 1.0)
    return (
        f'<div class="wb-meter {css}"><span>{escaped(title)}</span><span>{escaped(value)}</span>'
        f'<i><b style="width:{width:.1%}"></b></i></div>'
    )
