"""The words that people sort their runs by."""

from __future__ import annotations

from fastapi import APIRouter

from backend import store
from backend.http.services import Server
from sae_engine.schema.runs import TagCount

router = APIRouter(prefix="/tags", tags=["runs"])


@router.get("")
def list_tags(server: Server) -> list[TagCount]:
    """Every tag and how many runs carry it, the commonest first."""
    with server.database.reading() as session:
        return store.count_tags(session)
