"""All features of a run at once: a histogram of their densities, and a map."""

from __future__ import annotations

from fastapi import APIRouter, Response

from backend.analyses.client import Analysis, Source
from backend.http.parameters import IndexedDep
from backend.http.progress import NOT_READY, not_ready
from backend.http.services import ServicesDep
from sae_engine.features.analysis import density_histogram, feature_map
from sae_engine.features.geometry.files import Layout
from sae_engine.schema.analysis import AnalysisProgress, DensityHistogram, FeatureMap

router = APIRouter(prefix="/runs/{run_id}", tags=["features"])


@router.get("/densities")
def get_densities(indexed: IndexedDep) -> DensityHistogram:
    """A histogram of the densities of a run's features, on a logarithmic scale."""
    return density_histogram(indexed.features)


@router.get("/map", responses=NOT_READY)
def get_map(
    run_id: str, indexed: IndexedDep, services: ServicesDep, response: Response
) -> FeatureMap | AnalysisProgress:
    """A run's features on a plane; features with similar decoder rows lie close together.

    Computed once; 202 with the progress until then.
    """
    analysis = Analysis("map", (Source(run_id, indexed.features),))
    layout = services.analyses.get(analysis, Layout.load)
    if isinstance(layout, AnalysisProgress):
        return not_ready(layout, response)
    return feature_map(indexed.features, layout, indexed.labels, indexed.stars)
