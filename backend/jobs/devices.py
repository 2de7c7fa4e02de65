"""The GPUs that jobs can use and how busy they are, read without torch."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from typing import Any

from sae_engine.schema.machine import Device


@cache
def _nvml() -> Any:
    """NVIDIA's management library; None without the library, a driver or a GPU."""
    try:
        import pynvml  # pyright: ignore[reportMissingTypeStubs]

        pynvml.nvmlInit()
    except Exception:
        return None
    return pynvml if pynvml.nvmlDeviceGetCount() else None


def visible_gpus() -> list[str]:
    """The GPUs visible to this process, as `CUDA_VISIBLE_DEVICES` names them."""
    nvml = _nvml()
    if nvml is None:
        return []
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return [str(number) for number in range(nvml.nvmlDeviceGetCount())]
    return [name for part in chosen.split(",") if (name := part.strip()) and name != "-1"]


def gpus() -> list[Device]:
    """The current state of the visible GPUs; null where a GPU does not report a value."""
    nvml = _nvml()
    if nvml is None:
        return []
    return [_gpu(nvml, number, name) for number, name in enumerate(visible_gpus())]


def _gpu(nvml: Any, number: int, name: str) -> Device:
    handle = (
        nvml.nvmlDeviceGetHandleByIndex(int(name))
        if name.isdecimal()
        else nvml.nvmlDeviceGetHandleByUUID(name)
    )
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    utilization = temperature = None
    with suppress(nvml.NVMLError):
        utilization = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
    with suppress(nvml.NVMLError):
        temperature = float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
    return Device(
        id=f"cuda:{number}",
        name=nvml.nvmlDeviceGetName(handle),
        utilization=utilization,
        memory_used_bytes=memory.used,
        memory_total_bytes=memory.total,
        temperature_celsius=temperature,
    )
