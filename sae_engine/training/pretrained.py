"""A run without training: it publishes an SAE trained elsewhere, evaluates it on held-out text and
builds its features.

Called by `loop` for configurations with `sae.pretrained`; yields the same records as training.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from sae_engine.activations.feed import Feed, new_notices, open_feed
from sae_engine.errors import ConfigError
from sae_engine.interop.description import Description
from sae_engine.interop.load import load_pretrained
from sae_engine.interop.places import Place, hub_id, place_of, same_module
from sae_engine.model.identity import ModelIdentity
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
from sae_engine.training.rehearsal import REHEARSING, rehearse
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
    pretrained = load_pretrained(config.sae.pretrained, config.sae.pretrained_format, stop)
    _require_place(config, pretrained.described.place)
    for note in pretrained.notes:
        yield NoticeRecord(level="warning", message=note)
    yield PhaseRecord(phase="loading the language model")
    feed = open_feed([config], stop)
    reported: set[str] = set()
    yield from new_notices(feed, reported)
    stop()
    sae = pretrained.sae.to(feed.device)
    hook = feed.hook_of(config)
    _require_width(config, feed, sae.d_in)
    for note in differences(config, feed.hook_name(hook), pretrained.described):
        yield NoticeRecord(level="warning", message=note)
    if (model := feed.load_model(stop)) is not None:
        yield PhaseRecord(phase=REHEARSING)
        rehearse(model, stop)
        ModelIdentity.of(model).save(folder.model)
    if not all(bool(part.isfinite().all()) for part in (sae.W_dec, sae.b_dec, sae.b_enc)):
        raise ConfigError.of(
            "sae.pretrained", f"'{config.sae.pretrained}' has weights that are NaN or infinite."
        )
    sized = config.model_copy(update={"sae": config.sae.of_loaded(sae.d_sae, sae.k)})
    member._replace(config=sized).save_config()
    place, prepends_bos = feed.hook_name(hook), feed.prepends_bos
    publish_sae(sae, folder, config, place, prepends_bos=prepends_bos)
    yield PlanRecord(
        total_steps=0,
        total_tokens=0,
        d_in=sae.d_in,
        d_sae=sae.d_sae,
        k=sae.k,
        lr=0,
        device=str(feed.device),
        dtype=None if model is None else model.dtype_name,
        readers=feed.num_readers,
        documents=feed.division,
        pretrained_format=pretrained.described.format,
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
        yield from new_notices(feed, reported)
        yield PhaseRecord(phase="evaluating")
        work.measure_norm_limit()
        yield metrics(work.reconstruction(sae, config.data.heldout_tokens))
        yield PhaseRecord(phase="building the feature index")
        yield from work.index(sae, 0, final=True)
        stop.finishing = False
        stop()
        measured = yield from work.cross_entropy(sae)
        if measured:
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


def _require_place(config: RunConfig, place: Place) -> None:
    """Refuse an SAE of a place that `model.layer` and `model.site` cannot name."""
    if place.name and not place.is_named and config.model.hook_point is None:
        raise ConfigError.of(
            "model.hook_point",
            f"'{config.sae.pretrained}' was trained on {place.name}: {place.remedy}.",
        )


def differences(config: RunConfig, module: str, described: Description) -> list[str]:
    """Sentences on where the configuration, which reads `module`, differs from what the SAE was
    trained on.
    """
    place, model = described.place, config.model
    compared: dict[str, tuple[object, object]] = {
        "model.name": (described.model_name, hub_id(model.name))
    }
    if place.hook_point is not None:
        if not same_module(place.hook_point, module) or place.hook_io != model.hook_io:
            trained = f"{place.hook_point} ({place.hook_io})"
            compared["model.hook_point"] = (trained, f"{module} ({model.hook_io})")
    elif model.hook_point is None:
        compared["model.layer"] = (place.layer, model.layer)
        compared["model.site"] = (place.site, model.site)
    elif place.is_named and _layer_and_site(module, model.hook_io) != (place.layer, place.site):
        trained = f"{place.site} of layer {place.layer}"
        compared["model.hook_point"] = (trained, f"{module} ({model.hook_io})")
    return [
        f"{field} is {here}, but its {described.title} files say that this SAE was trained on "
        f"{theirs}."
        for field, (theirs, here) in compared.items()
        if theirs is not None and _short(theirs) != _short(here)
    ]


def _layer_and_site(module: str, hook_io: str) -> tuple[int | None, str | None]:
    """The place that a hook point reads, as `Place.layer` and `Place.site`."""
    place = place_of(f"{module}.{hook_io}")
    if hook_io == "input" and place.layer and same_module(module, f"layers.{place.layer}"):
        return place.layer - 1, "resid_post"
    return place.layer, place.site


def _short(name: object) -> str:
    return Path(str(name)).name.lower()
