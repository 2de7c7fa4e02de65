"""The GPUs that jobs can use and how busy they are, read without torch."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from sae_engine.schema.machine import Device


@cache
def _nvml() -> Any:
    """NVIDIA's management library; None without the library, a driver or a GPU."""
    try:
        import pynvml  # pyright: ignore[reportMissingTypeStubs]

        pynvml.nvmlInit()
        return pynvml if pynvml.nvmlDeviceGetCount() else None
    except Exception:
        return None


def visible_gpus() -> list[str]:
    """The GPUs visible to this process, as `CUDA_VISIBLE_DEVICES` names them."""
    nvml = _nvml()
    if nvml is None:
        return []
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return [str(number) for number in range(_read(nvml, nvml.nvmlDeviceGetCount) or 0)]
    return [name for part in chosen.split(",") if (name := part.strip()) and name != "-1"]


def gpus() -> list[Device]:
    """The current state of the visible GPUs; null where a GPU does not report a value."""
    nvml = _nvml()
    if nvml is None:
        return []
    return [_gpu(nvml, number, name) for number, name in enumerate(visible_gpus())]


def _gpu(nvml: Any, number: int, name: str) -> Device:
    handle = _read(nvml, _handle, nvml, name)

    def read(query: Any, *more: object) -> Any:
        return None if handle is None else _read(nvml, query, handle, *more)

    memory = read(nvml.nvmlDeviceGetMemoryInfo)
    rates = read(nvml.nvmlDeviceGetUtilizationRates)
    temperature = read(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU)
    return Device(
        id=f"cuda:{number}",
        name=read(nvml.nvmlDeviceGetName) or f"GPU {name}",
        utilization=None if rates is None else rates.gpu / 100,
        memory_used_bytes=None if memory is None else memory.used,
        memory_total_bytes=None if memory is None else memory.total,
        temperature_celsius=None if temperature is None else float(temperature),
    )


def _handle(nvml: Any, name: str) -> Any:
    if name.isdecimal():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    return nvml.nvmlDeviceGetHandleByUUID(name)


def _read(nvml: Any, query: Any, *more: object) -> Any:
    """What the driver answers; None if it does not support the query or does not know the GPU."""
    try:
        return query(*more)
    except (nvml.NVMLError, ValueError):
        return None
