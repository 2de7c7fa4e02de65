"""From a token's text to the features that go with it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from backend import store
from backend.http.indexes import open_index
from backend.http.services import Server
from backend.routes.features import SnapshotStep
from sae_engine.schema.lookup import LookupRank, LookupResult, TokenMatch

router = APIRouter(prefix="/runs/{run_id}", tags=["features"])


@router.get("/lookup")
def lookup(
    run_id: str,
    server: Server,
    text: Annotated[str, Query(min_length=1, max_length=500)],
    match: TokenMatch = "fold",
    rank: LookupRank = "f1",
    min_count: Annotated[int, Query(ge=1)] = 5,
    limit: Annotated[int, Query(ge=1, le=500)] = 20,
    snapshot: SnapshotStep = None,
) -> LookupResult:
    """Features ranked by how well they go with a token, or with a phrase at its last token."""
    with server.database.reading() as session:
        index = open_index(server, session, run_id, snapshot)
        labels = store.labels(session, run_id)
    return index.lookup(
        text, match=match, rank=rank, min_count=min_count, limit=limit, labels=labels
    )
