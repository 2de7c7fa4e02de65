"""The part of the fake API that looks at many features at once."""

from __future__ import annotations

import math

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from sae_engine.schema import analysis
from sae_engine.schema import features as api
from sae_engine.schema.problems import Problem
from tests.frontend.fake_world import D_SAE, NASTY, World


def add_comparison(app: FastAPI, world: World) -> None:
    """Densities, map and comparison over one `World`."""

    def computed() -> Response | None:
        """A refusal or a progress as long as the world says that nothing is there yet."""
        world.asked += 1
        if world.failing:
            world.failing = False
            problem = Problem(
                type="urn:sae-workbench:analysis-failed",
                title="Conflict",
                status=409,
                detail="The computation was ended by SIGKILL.",
            )
            return JSONResponse(problem.model_dump(), 409, media_type="application/problem+json")
        if world.computing:
            progress = analysis.AnalysisProgress(phase=f"comparing {NASTY}", fraction=0.25)
            return JSONResponse(progress.model_dump(), 202)
        return None

    @app.get("/api/runs/{run_id}/densities")
    def densities(run_id: str, snapshot: int) -> analysis.DensityHistogram:
        rows = [world.row(i) for i in range(D_SAE)]
        edges = [10 ** (n / 2 - 5) for n in range(11)]
        alive = [math.log10(r.density.fraction) for r in rows if r.density.fired]
        return analysis.DensityHistogram(
            snapshot=snapshot,
            edges=edges,
            counts=[sum(n / 2 - 5 <= log < n / 2 - 4.5 for log in alive) for n in range(10)],
            num_dead=D_SAE - len(alive),
        )

    @app.get("/api/runs/{run_id}/map", response_model=None)
    def feature_map(run_id: str, snapshot: int) -> analysis.FeatureMap | Response:
        if (other := computed()) is not None:
            return other
        rows = [row for i in range(D_SAE) if (row := world.row(i)).density.fired]
        return analysis.FeatureMap(
            snapshot=snapshot,
            index=[row.index for row in rows],
            x=[math.cos(row.index) for row in rows],
            y=[math.sin(row.index) for row in rows],
            density=[row.density.fraction for row in rows],
            top_tokens=[row.top_tokens for row in rows],
            labels={row.index: row.label for row in rows if row.label},
            num_dead=D_SAE - len(rows),
        )

    @app.get("/api/compare")
    def compare(runs: str) -> analysis.Comparison:
        chosen = [world.look(run_id) for run_id in runs.split(",")]
        layers = [run.config.model.layer for run in chosen]
        different = [analysis.ConfigDifference(field="model.layer", values=layers)]
        return analysis.Comparison(
            runs=chosen,
            differences=different if len(set(layers)) > 1 else [],
            curves=[world.metrics(run.id, -1) for run in chosen],
            best=[{"fvu": analysis.BestValue(value=0.1, step=5)} for _ in chosen],
            obstacle=None,
        )

    @app.get("/api/compare/features", response_model=None)
    def compare_features(
        runs: str,
        section: analysis.MatchSection = "mutual",
        threshold: float = 0.7,
        order: api.SortOrder = "desc",
        cursor: int = 0,
    ) -> analysis.FeatureComparison | Response:
        if world.obstacle:
            problem = Problem(
                type="urn:sae-workbench:not-comparable",
                title="Conflict",
                status=409,
                detail=world.obstacle,
            )
            return JSONResponse(problem.model_dump(), 409, media_type="application/problem+json")
        if (other := computed()) is not None:
            return other
        items = [
            analysis.MatchedFeatures(
                a=world.row(i), b=world.row(i + 1), cosine=1 - i / 100, mutual=section == "mutual"
            )
            for i in range(60)
        ]
        items = [item for item in items if (item.cosine >= threshold) == (section == "mutual")]
        page = (items if order == "desc" else items[::-1])[cursor : cursor + 50]
        return analysis.FeatureComparison(
            snapshots=[489, 489],
            num_features=[500, 502],
            cosine_edges=[0, 0.5, 1],
            counts_a=[100, 400],
            counts_b=[102, 400],
            threshold=threshold,
            num_mutual=31,
            num_only_a=29,
            num_only_b=29,
            items=page,
            total=len(items),
            next_cursor=str(cursor + 50) if cursor + 50 < len(items) else None,
        )
