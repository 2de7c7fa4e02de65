"""Which format an SAE's files have, and what they say about it. No torch, no tensors.

Settings that would change what the SAE computes, and that cannot be honored, are refused or noted
here. Read by `load` and, before a run is created, by the backend.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_engine.errors import UserError
from sae_engine.interop import fields
from sae_engine.interop.description import Description, quoted, section, text_of
from sae_engine.interop.files import PICKLES, SAEFile, find_sae, is_module
from sae_engine.interop.places import NO_LAYER, NO_SITE, SAELENS_SITES, Place, layer_of, place_of
from sae_engine.interop.saelens_settings import describe_saelens
from sae_engine.interop.scope_settings import describe_gemma_scope, describe_qwen_scope
from sae_engine.schema.config import PretrainedFormat

DICTIONARY_KINDS = (
    "AutoEncoderTopK", "AutoEncoder", "BatchTopKSAE", "MatryoshkaBatchTopKSAE",
    "JumpReluAutoEncoder", "GatedAutoEncoder",
)  # fmt: skip


def describe(path: str | Path, wanted: PretrainedFormat | None = None) -> Description:
    """What the files of the SAE at `path` or `hub:OWNER/NAME/PATH` say; downloads no tensors.

    The format is `wanted`, or detected. Raises `UserError` for an SAE that is known not to be
    readable.
    """
    return describe_file(find_sae(path), wanted)


def describe_file(file: SAEFile, wanted: PretrainedFormat | None = None) -> Description:
    """The format is `wanted`, or detected."""
    for name, is_of, description_of in FORMATS:
        if name == wanted or (wanted is None and is_of(file)):
            return description_of(file)
    names = sorted(file.header.names)[:8] if file.header else []
    raise UserError(
        f"'{file.shown}' "
        + (f"has the tensors {', '.join(names)}. That is" if names else "is")
        + " not a supported SAE, or its cfg.json or config.json is missing."
    )


def _ours(file: SAEFile) -> Description:
    settings = file.settings("cfg.json") if file.has_sibling("cfg.json") else {}
    place = place_of(settings.get("hook_name"))
    if settings.get("hook_io") == "input":
        place = place_of(f"{settings.get('hook_name')}.input")
    notes = fields.note_on_unknown("cfg.json", settings, fields.OURS)
    model_name = text_of(settings, "model_name")
    return Description("sae-workbench", model_name, place, notes, settings)


def _sparsify(file: SAEFile) -> Description:
    """EleutherAI's sparsify; the folder is named after the module that the SAE reads."""
    settings = file.settings("cfg.json")
    if settings.get("transcode") or settings.get("skip_connection"):
        file.refuse("a transcoder", "autoencoders of one site")
    if settings.get("activation", "topk") != "topk":
        file.refuse(f"an SAE with {quoted(settings['activation'])} activation", "topk")
    folder = file.place.parent.name
    run = file.settings("../config.json") if file.has_sibling("../config.json") else {}
    return Description(
        "sparsify",
        text_of(run, "model"),
        place_of(folder) if is_module(folder) else Place(),
        fields.note_on_unknown("cfg.json", settings, fields.SPARSIFY),
        settings,
    )


def _dictionary_learning(file: SAEFile) -> Description:
    """The dictionary_learning library: `ae.pt` or its tensors as safetensors, and `config.json`."""
    config = file.settings("config.json")
    trainer, buffer = section(config, "trainer"), section(config, "buffer")
    kind = trainer.get("dict_class")
    if kind not in DICTIONARY_KINDS:
        file.refuse(f"dictionary_learning's {quoted(kind)}", ", ".join(DICTIONARY_KINDS))
    if buffer.get("io") == "in_and_out":
        file.refuse("a transcoder", "autoencoders of one site")
    submodule, layer = str(trainer.get("submodule_name") or ""), layer_of(trainer.get("layer"))
    site = next((site for site in SAELENS_SITES if site in submodule), None)
    remedy = NO_LAYER if site and layer is None else NO_SITE
    place = Place(layer, site, name=submodule, remedy=remedy)
    if re.search(r"\.\d+(\.|$)", submodule):
        place = place_of(submodule)
    if buffer.get("io") == "in":
        place = Place(place.layer, name=f"the input of {submodule}")
    notes = fields.note_on_unknown("config.json", trainer, fields.DICTIONARY_LEARNING)
    return Description("dictionary_learning", text_of(trainer, "lm_name"), place, notes, trainer)


def _is_ours(file: SAEFile) -> bool:
    if file.header is not None:
        return "activation" in file.header.metadata
    return file.place.name == "sae.safetensors" and "architecture" in _cfg(file)


def _is_sparsify(file: SAEFile) -> bool:
    if file.header is not None:
        return "encoder.weight" in file.header.names and "W_dec" in file.header.names
    return file.place.name == "sae.safetensors" and "architecture" not in _cfg(file)


def _cfg(file: SAEFile) -> dict[str, Any]:
    return file.settings("cfg.json") if file.has_sibling("cfg.json") else {}


def _is_gemma_scope(file: SAEFile) -> bool:
    names = {"W_enc", "w_enc"} if file.header is None else file.header.names
    return file.place.stem == "params" and not names.isdisjoint({"W_enc", "w_enc"})


def _is_other_npz(file: SAEFile) -> bool:
    return file.place.suffix == ".npz" and (file.header is None or "W_enc" in file.header.names)


FORMATS: tuple[
    tuple[PretrainedFormat, Callable[[SAEFile], bool], Callable[[SAEFile], Description]], ...
] = (
    (
        "saelens",
        lambda f: f.place.stem == "sae_weights" and f.has_sibling("cfg.json"),
        describe_saelens,
    ),
    ("sae-workbench", _is_ours, _ours),
    ("sparsify", _is_sparsify, _sparsify),
    ("gemma-scope", _is_gemma_scope, describe_gemma_scope),
    (
        "qwen-scope",
        lambda f: f.place.suffix in PICKLES and ".sae." in f.place.name,
        describe_qwen_scope,
    ),
    ("dictionary_learning", lambda f: f.has_sibling("config.json"), _dictionary_learning),
    ("gemma-scope", _is_other_npz, describe_gemma_scope),
)
"""Formats, how to detect them, and what reads their settings; the first match is used."""
