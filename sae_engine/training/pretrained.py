"""A run without training: it publishes an SAE trained elsewhere, evaluates it on held-out text and
builds its features.

Called by `loop` for configurations with `sae.pretrained`; yields the same records as training.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from sae_engine.activations.feed import Feed, open_feed
from sae_engine.errors import ConfigError
from sae_engine.interop.load import PretrainedSAE, load_pretrained
from sae_engine.sae.published import publish_sae
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import (
    AnyRecord,
    EndRecord,
    MetricsRecord,
    NoticeRecord,
    PhaseRecord,
    PlanRecord,
    StopRequest,
)
from sae_engine.training.heldout import HeldoutWork, SharedHeldout
from sae_engine.training.member import Member
from sae_engine.training.stopping import Halted, StopSwitch


def inspect_pretrained(member: Member) -> Iterator[AnyRecord]:
    """Publish, evaluate and index the SAE at `sae.pretrained`, all at step 0.

    A stop before the SAE is published ends the run; a later stop skips the cross-entropy, and a
    forced one also the evaluation and the features. Raises `UserError` if the SAE cannot be read or
    does not fit the model.
    """
    stop = StopSwitch(member.should_stop)
    try:
        yield from _inspect(member, stop)
        stopped = member.should_stop() is not StopRequest.NONE
    except Halted:
        stopped = True
    yield EndRecord(reason="stopped" if stopped else "finished", step=0, tokens=0)


def _inspect(member: Member, stop: StopSwitch) -> Iterator[AnyRecord]:
    config, folder = member.config, member.folder
    assert config.sae.pretrained is not None
    yield PhaseRecord(phase="reading the SAE")
    pretrained = load_pretrained(config.sae.pretrained, config.sae.pretrained_format)
    for note in pretrained.notes + _differences(config, pretrained):
        yield NoticeRecord(level="warning", message=note)
    yield PhaseRecord(phase="loading the language model")
    feed = open_feed([config], stop)
    for notice in feed.notices:
        yield NoticeRecord(level="warning", message=notice)
    stop()
    sae = pretrained.sae.to(feed.device)
    hook = feed.hook_of(config)
    _require_width(config, feed, sae.d_in)
    if not all(bool(part.isfinite().all()) for part in (sae.W_dec, sae.b_dec, sae.b_enc)):
        raise ConfigError.of(
            "sae.pretrained", f"'{config.sae.pretrained}' has weights that are NaN or infinite."
        )
    publish_sae(sae, folder, config, feed.hook_name(hook))
    yield PlanRecord(
        total_steps=0,
        total_tokens=0,
        d_in=sae.d_in,
        d_sae=sae.d_sae,
        lr=0,
        device=str(feed.device),
    )
    stop.finishing = True
    began = time.perf_counter()
    values: dict[str, float] = {}

    def metrics(new: dict[str, float]) -> MetricsRecord:
        values.update(new)
        seconds = time.perf_counter() - began
        return MetricsRecord(step=0, tokens=0, time=seconds, values=dict(values))

    with closing(SharedHeldout(feed, [config], folder.index_corpus)) as heldout:
        work = HeldoutWork(config, folder, heldout, stop)
        yield from work.open()
        yield PhaseRecord(phase="evaluating")
        work.measure_norm_limit()
        yield metrics(work.reconstruction(sae, config.data.heldout_tokens))
        yield PhaseRecord(phase="building the feature index")
        yield from work.index(sae, 0, final=True)
        stop.finishing = False
        stop()
        yield PhaseRecord(phase="measuring the cross-entropy delta")
        for measured in work.cross_entropy(sae):
            yield metrics(measured)


def _require_width(config: RunConfig, feed: Feed, d_in: int) -> None:
    hook = feed.hook_of(config)
    if feed.d_in(hook) != d_in:
        raise ConfigError.of(
            "sae.pretrained",
            f"'{config.sae.pretrained}' reads activations of width {d_in}, but those of "
            f"'{config.model.name}' at {feed.hook_name(hook)} have width {feed.d_in(hook)}; name "
            "the model and layer the SAE was trained on.",
        )


def _differences(config: RunConfig, pretrained: PretrainedSAE) -> list[str]:
    """Sentences on where the configuration differs from what the SAE was trained on."""
    described = {
        "model.name": (pretrained.model_name, config.model.name),
        "model.layer": (pretrained.layer, config.model.layer),
        "model.site": (pretrained.site, config.model.site),
    }
    if config.model.hook_point is not None:
        del described["model.layer"], described["model.site"]
    return [
        f"{field} is {here}, but its {pretrained.format} files say that this SAE was trained on "
        f"{theirs}."
        for field, (theirs, here) in described.items()
        if theirs is not None and _short(theirs) != _short(here)
    ]


def _short(name: object) -> str:
    return Path(str(name)).name.lower()
