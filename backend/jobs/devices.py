"""Which devices jobs can use and how busy they are, told without torch."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from typing import Any

from sae_engine.schema.machine import Device


@cache
def _nvml() -> Any:
    """NVIDIA's management library, or None where there is no such library, driver or device."""
    try:
        import pynvml  # pyright: ignore[reportMissingTypeStubs]

        pynvml.nvmlInit()
    except Exception:
        return None
    return pynvml if pynvml.nvmlDeviceGetCount() else None


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, each as `CUDA_VISIBLE_DEVICES` names it."""
    nvml = _nvml()
    if nvml is None:
        return []
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return [str(number) for number in range(nvml.nvmlDeviceGetCount())]
    return [name for part in chosen.split(",") if (name := part.strip()) and name != "-1"]


def gpus() -> list[Device]:
    """The GPUs as they are now; what one does not tell is null."""
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
