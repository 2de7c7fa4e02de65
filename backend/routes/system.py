"""Health, configuration and the machine."""

from __future__ import annotations

import shutil
from typing import Any

from fastapi import APIRouter

from backend import store
from backend.errors import UnprocessableError
from backend.http.configs import check_paths, with_local_files
from backend.http.services import ServicesDep
from backend.jobs.forecast import forecast
from backend.jobs.machine import memory, num_cpus
from backend.version import VERSION
from sae_engine.preflight import check_amount, check_text
from sae_engine.presets import expand_grid, presets, resolve_config
from sae_engine.schema.config import RunConfig
from sae_engine.schema.machine import EstimateRequest, Forecast, Health, Preset, Slot, System
from sae_engine.schema.texts import TextPreview
from sae_engine.text.preview import preview

router = APIRouter(tags=["system"])


@router.get("/health")
async def health() -> Health:
    """Whether the server responds; needs no token and waits for nothing."""
    return Health(status="ok", version=VERSION)


@router.get("/config/schema")
def config_schema() -> dict[str, Any]:
    """The JSON schema of a run's configuration."""
    return RunConfig.model_json_schema()


@router.get("/config/presets")
def config_presets() -> list[Preset]:
    """The presets that a run can start from."""
    return list(presets().values())


@router.post("/config/estimate")
def config_estimate(body: EstimateRequest, services: ServicesDep) -> Forecast:
    """The memory, disk and time that a run or sweep would need, and whether they are available."""
    configs = [
        with_local_files(services, config)
        for _, config in expand_grid(body.preset, body.config, body.grid)
    ]
    for config in configs:
        check_paths(services, config)
    # Runs of a sweep mostly share their text.
    texts = dict.fromkeys(c.data for c in configs if c.data.activations is None)
    notices = [sentence for data in texts for sentence in check_text(data)]
    notices += dict.fromkeys(said for config in configs for said in check_amount(config))
    places = services.supervisor.places([])
    with services.database.reading() as session:
        try:
            estimate = forecast(session, configs, places, services.settings.data_dir)
            return estimate.model_copy(update={"warnings": [*estimate.warnings, *notices]})
        except OverflowError:  # sizes are unbounded integers, estimates are floats
            raise UnprocessableError(
                "A number in this configuration is too large for an estimate; lower it.",
                kind="invalid",
            ) from None


@router.post("/config/preview")
def config_preview(body: EstimateRequest, services: ServicesDep) -> list[TextPreview]:
    """How each dataset of a run would be read: its column and its first documents."""
    config = with_local_files(services, resolve_config(body.preset, body.config))
    check_paths(services, config)
    if config.data.activations is not None:
        return []
    return [preview(data) for data in config.data.datasets]


@router.get("/system")
def system(services: ServicesDep) -> System:
    """The current state of devices, CPU, memory, disk and queue."""
    with services.database.reading() as session:
        queue = store.count_by_status(session)
        places = services.supervisor.places(store.active_runs(session))
    total, available = memory()
    disk = shutil.disk_usage(services.settings.data_dir)
    return System.model_validate(
        {
            "version": VERSION,
            "supervises": services.supervisor.supervises,
            "devices": services.supervisor.devices(),
            "problem": places.problem,
            "slots": [
                Slot(
                    id=slot.id,
                    device=slot.device,
                    runs=[row.id for row in places.runs_in(slot)],
                    problem=places.problem_of(slot),
                )
                for slot in places.slots
            ],
            "num_cpus": num_cpus(),
            "cpu_utilization": services.processors.read(),
            "memory_used_bytes": total - available,
            "memory_total_bytes": total,
            "disk_free_bytes": disk.free,
            "disk_total_bytes": disk.total,
            "queue": queue,
        }
    )
