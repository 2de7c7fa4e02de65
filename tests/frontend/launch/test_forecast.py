"""The forecast of the launch page as HTML."""

from __future__ import annotations

from frontend.launch.forecast import forecast_block
from sae_engine.schema.machine import Forecast, MemoryPart

GIB = 2**30
FORECAST = Forecast(
    d_in=64,
    d_sae=512,
    parameters=66_000,
    model_parameters=1_000_000,
    tokens=500_000,
    steps=976,
    checkpoint_bytes=GIB // 4,
    disk_bytes=2 * GIB,
    num_runs=1,
    num_passes=1,
    memory=[MemoryPart(name="SAE", bytes=3 * GIB)],
    memory_bytes=3 * GIB,
    device="gpu",
    slot_device="cuda:0",
    memory_free_bytes=60 * GIB,
    memory_total_bytes=80 * GIB,
    disk_free_bytes=50 * GIB,
    seconds=90.0,
    seconds_from="9,000 tokens/s, measured by 'tiny <baseline>' on cuda:0",
    warnings=["It takes <much>."],
)


def test_a_forecast_shows_needs_free_resources_and_its_source() -> None:
    text = forecast_block(FORECAST)
    assert "cuda:0 memory</span><strong>3 GiB</strong><small>60 GiB free" in text
    assert "<strong>2 GiB</strong><small>50 GiB free" in text
    assert "about 2 min" in text
    assert "9,000 tokens/s, measured by &#x27;tiny &lt;baseline&gt;&#x27; on cuda:0" in text
    assert '<div class="wb-notice warning"><span>It takes &lt;much&gt;.' in text
