"""All features of a run at once: their densities and their map."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from backend import store
from backend.analyses.client import Analysis, Source
from backend.http.indexes import open_index
from backend.http.services import Server
from backend.routes.features import SnapshotStep
from sae_engine.features.analysis import density_histogram, feature_map
from sae_engine.features.geometry.files import Layout
from sae_engine.schema.analysis import AnalysisProgress, DensityHistogram, FeatureMap

router = APIRouter(prefix="/runs/{run_id}", tags=["features"])

NOT_YET: dict[int | str, dict[str, Any]] = {
    202: {"model": AnalysisProgress, "description": "It is being computed; ask again"}
}
"""What an endpoint answers besides its shape while a computation runs."""


@router.get("/densities")
def get_densities(run_id: str, server: Server, snapshot: SnapshotStep = None) -> DensityHistogram:
    """How many of a run's features fire how often, on a logarithmic scale."""
    with server.database.reading() as session:
        index = open_index(server, session, run_id, snapshot)
    return density_histogram(index)


@router.get("/map", responses=NOT_YET)
def get_map(
    run_id: str, server: Server, response: Response, snapshot: SnapshotStep = None
) -> FeatureMap | AnalysisProgress:
    """A run's features on a plane, near each other where their decoder rows point the same way.
    Computed once; until then 202 with how far it is.
    """
    with server.database.reading() as session:
        index = open_index(server, session, run_id, snapshot)
        labels = store.labels(session, run_id)
    analysis = Analysis("map", (Source(run_id, index),))
    layout = server.analyses.get(analysis, Layout.load)
    if isinstance(layout, AnalysisProgress):
        return not_yet(layout, response)
    return feature_map(index, layout, labels)


def not_yet(progress: AnalysisProgress, response: Response) -> AnalysisProgress:
    """Answer 202, to be asked again in a second."""
    response.status_code = 202
    response.headers["Retry-After"] = "1"
    return progress
