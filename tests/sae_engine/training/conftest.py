"""Blocks of activations so small that short runs read several."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sae_engine.activations import stream


@pytest.fixture(scope="module")
def small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "TOKENS_PER_BLOCK", 512)
        yield
