"""The part of the fake API about the machine: devices, forecasts, sweeps."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from sae_engine.errors import ConfigError
from sae_engine.presets import expand_grid
from sae_engine.schema import machine, runs
from sae_engine.schema.problems import Problem
from tests.frontend.fake_world import World

GIB = 2**30


def add_machine(app: FastAPI, world: World) -> None:
    """Machine, forecasts and sweeps over one `World`."""

    @app.get("/api/system")
    def system() -> machine.System:
        working = [run.id for run in world.runs.values() if run.status == "running"]
        queued = sum(run.status == "queued" for run in world.runs.values())
        return machine.System(
            version="0.1.0",
            supervises=world.supervises,
            devices=[
                machine.Device(
                    id="cuda:0",
                    name="Fake <GPU>",
                    utilization=0.75,
                    memory_used_bytes=20 * GIB,
                    memory_total_bytes=80 * GIB,
                    temperature_celsius=91.0,
                )
            ],
            slots=[
                machine.Slot(id="cuda:0", device="cuda:0", runs=working),
                machine.Slot(id="cpu", device="cpu", runs=[]),
            ],
            num_cpus=4,
            cpu_utilization=0.5,
            memory_used_bytes=15 * GIB,
            memory_total_bytes=16 * GIB,
            disk_free_bytes=50 * GIB,
            disk_total_bytes=100 * GIB,
            queue={"queued": queued},
        )

    @app.post("/api/config/estimate", response_model=None)
    def estimate(body: machine.EstimateRequest) -> machine.Forecast | Response:
        try:
            members = expand_grid(body.preset, body.config, body.grid)
        except ConfigError as error:
            return _refusal(error)
        config = members[0][1]
        width = config.sae.d_sae or 0
        return machine.Forecast(
            d_in=64,
            d_sae=width,
            parameters=130 * width,
            model_parameters=1_000_000,
            tokens=config.train.total_tokens,
            steps=None,
            checkpoint_bytes=GIB // 4,
            disk_bytes=2 * GIB * len(members),
            num_runs=len(members),
            num_passes=1,
            memory=[machine.MemoryPart(name="SAE", bytes=3 * GIB)],
            memory_bytes=3 * GIB,
            device="gpu",
            slot_device="cuda:0",
            memory_free_bytes=60 * GIB,
            memory_total_bytes=80 * GIB,
            disk_free_bytes=50 * GIB,
            seconds=90.0,
            seconds_from="9,000 tokens/s of 'tiny <baseline>' on cuda:0",
            warnings=["It takes <much>."] if width > 100_000 else [],
        )

    @app.post("/api/sweeps", status_code=201, response_model=None)
    def sweep(body: runs.SweepCreate) -> runs.Sweep | Response:
        try:
            members = expand_grid(body.preset, body.config, body.grid)
        except ConfigError as error:
            return _refusal(error)
        world.sweeps.append(body)
        made = [
            world.add(f"m{n}", config, name=f"{body.name or body.preset} {label}", status="running")
            for n, (label, config) in enumerate(members)
        ]
        for run in made:
            world.runs[run.id] = run.model_copy(update={"group_id": "swept"})
        return runs.Sweep(id="swept", runs=[world.runs[run.id] for run in made])


def _refusal(error: ConfigError) -> JSONResponse:
    problem = Problem(
        type="about:blank", title="Refused", status=422, detail=str(error), errors=error.problems
    )
    return JSONResponse(problem.model_dump(), 422, media_type="application/problem+json")
