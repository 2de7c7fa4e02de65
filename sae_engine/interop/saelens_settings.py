"""Reads the settings of SAELens, which say how the SAE and its model were made. No torch.

Used by `formats`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sae_engine.errors import UserError
from sae_engine.interop import fields
from sae_engine.interop.description import Description, quoted, section, text_of
from sae_engine.interop.files import SAEFile
from sae_engine.interop.places import hub_id, place_of

SAELENS_KINDS = (
    "topk", "abstopk", "jumprelu", "batchtopk", "matryoshka_batchtopk", "gated", "standard"
)  # fmt: skip
CENTERED_REPOSITORIES = (
    "jbloom/GPT2-Small-SAEs-Reformatted",
    "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8",
)
"""Trained with `center_writing_weights`, though their settings lack it (as SAELens knows)."""
RMS_NORM = re.compile("gemma|llama|qwen|mistral|mixtral|olmo", re.IGNORECASE)
"""Models without a LayerNorm, for which TransformerLens ignores `center_writing_weights`."""
CENTERED = (
    "It was trained on activations from which TransformerLens had removed the mean over their "
    "coordinates (center_writing_weights). Here its encoder removes that mean, and its "
    "reconstructions get it back, so features and errors are the same."
)


def describe_saelens(file: SAEFile) -> Description:
    """SAELens 3 to 6. Before 6, `cfg.json` was flat and TopK was an activation function."""
    settings = file.settings("cfg.json")
    described = settings | section(settings, "metadata")
    function = settings.get("activation_fn") or settings.get("activation_fn_str") or "relu"
    kind = "topk" if function == "topk" else settings.get("architecture", "standard")
    if described.get("hook_name_out") or described.get("is_transcoder"):
        file.refuse("a transcoder", "autoencoders of one site")
    if kind not in SAELENS_KINDS:
        file.refuse(f"SAELens's {quoted(kind)}", ", ".join(SAELENS_KINDS))
    if function not in ("relu", "topk"):
        file.refuse(f"an SAE with the activation function {quoted(function)}", "relu and topk")
    arguments = section(settings, "activation_fn_kwargs")
    if arguments.get("signed"):
        kind = "abstopk"
    if settings.get("normalize_activations") not in (None, False, "none"):
        raise UserError(
            f"'{file.shown}' expects inputs normalized by "
            f"{quoted(settings['normalize_activations'])}; fold the normalization into its weights "
            "with SAELens, and save it with normalize_activations = 'none'."
        )
    head = described.get("hook_head_index", described.get("hook_point_head_index"))
    if head is not None:
        file.refuse(f"an SAE of attention head {head!s:.20} alone", "SAEs of a whole activation")
    place = place_of(described.get("hook_name") or described.get("hook_point"))
    if not place.is_named and described.get("hf_hook_name"):
        place = place_of(described["hf_hook_name"])
    model_name = text_of(described, "model_name")
    notes, removes_mean = _of_loading(file, described)
    notes += fields.note_on_unknown("cfg.json", described, fields.SAELENS)
    notes += fields.note_on_unknown(
        "cfg.json", arguments, frozenset({"k", "signed"}), "activation_fn_kwargs."
    )
    return Description(
        "saelens",
        hub_id(model_name) if model_name else None,
        place,
        notes,
        settings | {"kind": kind},
        removes_mean,
    )


def _of_loading(file: SAEFile, described: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Notes on how the model was loaded and read, and whether activations lost their mean."""
    loading = section(described, "model_from_pretrained_kwargs")
    notes = fields.note_on_unknown(
        "cfg.json",
        {k: v for k, v in loading.items() if k != "center_writing_weights"},
        fields.MODEL_LOADING,
        "model_from_pretrained_kwargs.",
    )
    is_listed = any(name in file.place.as_posix() for name in CENTERED_REPOSITORIES)
    removes_mean = bool(loading.get("center_writing_weights")) or is_listed
    removes_mean &= not RMS_NORM.search(str(described.get("model_name", "")))
    if removes_mean:
        notes.append(CENTERED)
    if described.get("prepend_bos") is False:
        notes.append(
            "It was trained on text without a BOS token; here rows start with one if the model has "
            "it."
        )
    if (positions := described.get("seqpos_slice")) not in (None, [], [None]):
        notes.append(
            f"It was trained on the positions {positions!s:.80} of each row; here all positions "
            "are read."
        )
    return notes, removes_mean
