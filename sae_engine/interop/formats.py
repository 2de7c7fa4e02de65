"""Which format an SAE's files have, and what they say about it. No torch, no tensors.

Settings that would change what the SAE computes, and that cannot be honoured, are refused or noted
here. Read by `load` and, before a run is created, by the backend.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sae_engine.errors import UserError
from sae_engine.interop import fields
from sae_engine.interop.files import PICKLES, SAEFile, find_sae, is_module
from sae_engine.interop.places import SAELENS_SITES, Place, hub_id, place_of
from sae_engine.schema.config import PretrainedFormat

TITLES: Mapping[PretrainedFormat, str] = {
    "sae-workbench": "SAE Workbench",
    "saelens": "SAELens",
    "sparsify": "sparsify",
    "gemma-scope": "Gemma Scope",
    "qwen-scope": "Qwen-Scope",
    "dictionary_learning": "dictionary_learning",
}
SAELENS_KINDS = (
    "topk", "abstopk", "jumprelu", "batchtopk", "matryoshka_batchtopk", "gated", "standard"
)  # fmt: skip
DICTIONARY_KINDS = (
    "AutoEncoderTopK", "AutoEncoder", "BatchTopKSAE", "MatryoshkaBatchTopKSAE",
    "JumpReluAutoEncoder", "GatedAutoEncoder",
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
    "coordinates (center_writing_weights). Its encoder is adjusted, so the features are the same; "
    "its reconstructions lack that mean, which FVU counts as an error."
)


class Description(NamedTuple):
    """What an SAE's files say about it."""

    format: PretrainedFormat
    model_name: str | None
    """As a Hugging Face id where it is known."""
    place: Place
    notes: list[str]
    """Notes for users of the SAE."""
    settings: Mapping[str, Any]
    removes_mean: bool = False
    """Whether its input is an activation minus the mean over the activation's coordinates."""

    @property
    def title(self) -> str:
        return TITLES[self.format]


def describe(path: str | Path) -> Description:
    """What the files of the SAE at `path` or `hub:OWNER/NAME/PATH` say; downloads no tensors.

    Raises `UserError` for an SAE that is known not to be readable.
    """
    return describe_file(find_sae(path))


def describe_file(file: SAEFile, wanted: PretrainedFormat | None = None) -> Description:
    """The format is `wanted`, or detected."""
    for name, is_of, description_of in FORMATS:
        if name == wanted or (wanted is None and is_of(file)):
            return description_of(file)
    names = sorted(file.header.names)[:8] if file.header else []
    raise UserError(
        f"'{file.shown}' "
        + (f"has the tensors {', '.join(names)}. That is" if names else "is")
        + f" not an SAE of {', '.join(TITLES.values())}, or its settings file (cfg.json, "
        "config.json) is missing."
    )


def _ours(file: SAEFile) -> Description:
    settings = file.settings("cfg.json") if file.has_beside("cfg.json") else {}
    place = place_of(settings.get("hook_name"))
    if settings.get("hook_io") == "input":
        place = place_of(f"{settings.get('hook_name')}.input")
    notes = fields.note_on_unknown("cfg.json", settings, fields.OURS)
    return Description("sae-workbench", settings.get("model_name"), place, notes, settings)


def _saelens(file: SAEFile) -> Description:
    """SAELens 3 to 6. Before 6, `cfg.json` was flat and TopK was an activation function."""
    settings = file.settings("cfg.json")
    described = settings | _section(settings, "metadata")
    function = settings.get("activation_fn") or settings.get("activation_fn_str") or "relu"
    kind = "topk" if function == "topk" else settings.get("architecture", "standard")
    if described.get("hook_name_out") or described.get("is_transcoder"):
        file.refuse("a transcoder", "autoencoders of one site")
    if kind not in SAELENS_KINDS:
        file.refuse(f"SAELens's '{kind}'", ", ".join(SAELENS_KINDS))
    if function not in ("relu", "topk"):
        file.refuse(f"an SAE with the activation function '{function}'", "relu and topk")
    arguments = _section(settings, "activation_fn_kwargs")
    if arguments.get("signed"):
        kind = "abstopk"
    if settings.get("normalize_activations") not in (None, False, "none"):
        raise UserError(
            f"'{file.shown}' expects inputs normalized by "
            f"'{settings['normalize_activations']}'; fold the normalization into its weights with "
            "SAELens, and save it with normalize_activations = 'none'."
        )
    head = described.get("hook_head_index", described.get("hook_point_head_index"))
    if head is not None:
        file.refuse(f"an SAE of attention head {head} alone", "SAEs of a whole activation")
    place = place_of(described.get("hook_name") or described.get("hook_point"))
    if not place.is_named and described.get("hf_hook_name"):
        place = place_of(described["hf_hook_name"])
    model_name = described.get("model_name")
    notes, removes_mean = _of_loading(file, described)
    notes += fields.note_on_unknown("cfg.json", described, fields.SAELENS)
    notes += fields.note_on_unknown(
        "cfg.json", arguments, frozenset({"k", "signed"}), "activation_fn_kwargs."
    )
    return Description(
        "saelens",
        hub_id(str(model_name)) if model_name else None,
        place,
        notes,
        settings | {"kind": kind},
        removes_mean,
    )


def _of_loading(file: SAEFile, described: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Notes on how the model was loaded and read, and whether activations lost their mean."""
    loading = _section(described, "model_from_pretrained_kwargs")
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
        notes.append("It was trained on text without a BOS token; here every row starts with one.")
    if any(bound is not None for bound in described.get("seqpos_slice") or ()):
        notes.append(
            f"It was trained on the positions {described['seqpos_slice']} of each row; here all "
            "positions are read."
        )
    return notes, removes_mean


def _sparsify(file: SAEFile) -> Description:
    """EleutherAI's sparsify; the folder is named after the module that the SAE reads."""
    settings = file.settings("cfg.json")
    if settings.get("transcode") or settings.get("skip_connection"):
        file.refuse("a transcoder", "autoencoders of one site")
    if settings.get("activation", "topk") != "topk":
        file.refuse(f"an SAE with '{settings['activation']}' activation", "topk")
    folder = file.place.parent.name
    run = file.settings("../config.json") if file.has_beside("../config.json") else {}
    return Description(
        "sparsify",
        run.get("model") if isinstance(run.get("model"), str) else None,
        place_of(folder) if is_module(folder) else Place(),
        fields.note_on_unknown("cfg.json", settings, fields.SPARSIFY),
        settings,
    )


def _gemma_scope(file: SAEFile) -> Description:
    """Gemma Scope (Lieberum et al. 2024, arXiv 2408.05147) and its second release, which has a
    `config.json`. In the first, the path names model, site and layer.
    """
    path = file.place.as_posix()
    where = path[max(0, path.find("gemma-scope")) :]
    settings = file.settings("config.json") if file.has_beside("config.json") else {}
    there, back = settings.get("hf_hook_point_in"), settings.get("hf_hook_point_out")
    is_transcoder = settings.get("affine_connection") or (back and back != there)
    if re.search("transcoder|crosscoder|/clt", where) or is_transcoder:
        file.refuse("a transcoder", "autoencoders of one site")
    if "/embedding" in where:
        file.refuse("an SAE of the token embeddings", "SAEs of a layer")
    if settings.get("architecture", "jump_relu") != "jump_relu":
        file.refuse(f"a Gemma Scope SAE of kind '{settings['architecture']}'", "jump_relu")
    model_name, place = _of_first_release(where)
    if re.search(r"gemma-scope-2-\d", where) or there:
        model_name, place = _of_second_release(where, settings)
    notes = fields.note_on_unknown("config.json", settings, fields.GEMMA_SCOPE)
    return Description("gemma-scope", model_name, place, notes, settings)


def _of_first_release(where: str) -> tuple[str | None, Place]:
    layer = re.search(r"layer_(\d+)", where)
    number = int(layer[1]) if layer else None
    release = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att)", where)
    if release is None:
        return None, Place(number)
    model_name = f"google/gemma-2-{release[1]}" + ("-it" if release[2] == "it" else "")
    if release[3] == "att":
        heads = f"model.layers.{number}.self_attn.o_proj.input"
        return model_name, place_of(heads) if layer else Place()
    return model_name, Place(number, {"res": "resid_post", "mlp": "mlp_out"}[release[3]])


def _of_second_release(where: str, settings: Mapping[str, Any]) -> tuple[str | None, Place]:
    release = re.search(r"gemma-scope-2-([\w.]+-(?:pt|it))", where)
    model_name = f"gemma-3-{release[1]}" if release else settings.get("model_name")
    if isinstance(model_name, str):
        model_name = hub_id(model_name.removeprefix("google/").replace("gemma-v3-", "gemma-3-"))
        model_name = re.sub("(-270m)-pt$", r"\1", model_name)
    if settings.get("hf_hook_point_in"):
        return model_name, place_of(settings["hf_hook_point_in"])
    found = re.search(r"(resid_post|mlp_out|attn_out)\w*/layer_(\d+)", where)
    if found is None:
        return model_name, Place()
    if found[1] == "attn_out":
        return model_name, place_of(f"model.layers.{found[2]}.self_attn.o_proj.input")
    return model_name, Place(int(found[2]), found[1])


def _qwen_scope(file: SAEFile) -> Description:
    """Qwen-Scope: TopK on inputs that are not centered. The repository's name, such as
    `SAE-Res-Qwen3-1.7B-Base-W32K-L0_50`, has the model and k; the file's, the layer.
    """
    release = re.search(r"SAE-Res-(.+)-W\d+K-L0_(\d+)", file.place.as_posix())
    layer = re.search(r"layer(\d+)\.sae", file.place.name)
    if release is None:
        raise UserError(
            f"'{file.shown}' does not say its k; keep it in a folder with the name of its "
            "repository, such as SAE-Res-Qwen3-1.7B-Base-W32K-L0_50."
        )
    place = Place(int(layer[1]), "resid_post") if layer else Place()
    settings = {"k": int(release[2])}
    return Description("qwen-scope", f"Qwen/{release[1]}", place, [], settings)


def _dictionary_learning(file: SAEFile) -> Description:
    """The dictionary_learning library: `ae.pt` or its tensors as safetensors, and `config.json`."""
    config = file.settings("config.json")
    trainer, buffer = _section(config, "trainer"), _section(config, "buffer")
    kind = trainer.get("dict_class")
    if kind not in DICTIONARY_KINDS:
        file.refuse(f"dictionary_learning's '{kind}'", ", ".join(DICTIONARY_KINDS))
    if buffer.get("io") == "in_and_out":
        file.refuse("a transcoder", "autoencoders of one site")
    submodule, layer = str(trainer.get("submodule_name") or ""), trainer.get("layer")
    site = next((site for site in SAELENS_SITES if site in submodule), None)
    place = Place(layer if isinstance(layer, int) else None, site, name=submodule)
    if re.search(r"\.\d+(\.|$)", submodule):
        place = place_of(submodule)
    if buffer.get("io") == "in":
        place = Place(place.layer, name=f"the input of {submodule}")
    notes = fields.note_on_unknown("config.json", trainer, fields.DICTIONARY_LEARNING)
    return Description("dictionary_learning", trainer.get("lm_name"), place, notes, trainer)


def _section(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = settings.get(name)
    return value if isinstance(value, dict) else {}


def _is_ours(file: SAEFile) -> bool:
    if file.header is not None:
        return "activation" in file.header.metadata
    return file.place.name == "sae.safetensors" and "architecture" in _cfg(file)


def _is_sparsify(file: SAEFile) -> bool:
    if file.header is not None:
        return "encoder.weight" in file.header.names and "W_dec" in file.header.names
    return file.place.name == "sae.safetensors" and "architecture" not in _cfg(file)


def _cfg(file: SAEFile) -> dict[str, Any]:
    return file.settings("cfg.json") if file.has_beside("cfg.json") else {}


def _is_gemma_scope(file: SAEFile) -> bool:
    names = {"W_enc", "w_enc"} if file.header is None else file.header.names
    return file.place.stem == "params" and not names.isdisjoint({"W_enc", "w_enc"})


def _is_other_npz(file: SAEFile) -> bool:
    return file.place.suffix == ".npz" and (file.header is None or "W_enc" in file.header.names)


FORMATS: tuple[
    tuple[PretrainedFormat, Callable[[SAEFile], bool], Callable[[SAEFile], Description]], ...
] = (
    ("saelens", lambda f: f.place.stem == "sae_weights" and f.has_beside("cfg.json"), _saelens),
    ("sae-workbench", _is_ours, _ours),
    ("sparsify", _is_sparsify, _sparsify),
    ("gemma-scope", _is_gemma_scope, _gemma_scope),
    (
        "qwen-scope",
        lambda f: f.place.suffix in PICKLES and ".sae." in f.place.name,
        _qwen_scope,
    ),
    ("dictionary_learning", lambda f: f.has_beside("config.json"), _dictionary_learning),
    ("gemma-scope", _is_other_npz, _gemma_scope),
)
"""Formats, how to detect them, and what reads their settings; the first match is used."""
