"""Keeps one language model and the most recently used SAEs in memory between requests.

Used by the playground's worker process. Only one language model is held at a time, because two may
not fit.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch

from sae_engine.errors import UserError
from sae_engine.features.index.vocabulary import token_bytes
from sae_engine.model.language_model import LanguageModel, SpliceModel
from sae_engine.playground.read import ProbeModel
from sae_engine.sae.autoencoders import SAE
from sae_engine.schema.config import ModelConfig

MAX_SAES = 4

Report = Callable[[str], None]
"""Called with a phrase that describes what is being loaded."""


class ModelCache:
    """Loads language models and SAEs, and reports slow loads."""

    def __init__(self, report: Report = lambda phase: None) -> None:
        self._report = report
        self._loaded: _LoadedModel | None = None
        self._saes: OrderedDict[tuple[Path, int, torch.device], SAE] = OrderedDict()

    def get(self, config: ModelConfig, sae_path: Path) -> tuple[ProbeModel, SAE]:
        """The language model of `config`, read at its hook, and the SAE.

        Raises `UserError` if one of them cannot be loaded or their widths differ.
        """
        model = self._model(config)
        sae = self._sae(sae_path, model.model.device)
        if sae.d_in != model.model.d_in:
            raise UserError(
                f"The SAE reads activations of width {sae.d_in}, but those of '{config.name}' at "
                f"{model.model.hook_name} have width {model.model.d_in}."
            )
        return model, sae

    def _model(self, config: ModelConfig) -> ProbeModel:
        if self._loaded is not None and self._loaded.model_key == _model_key(config):
            at_hook = self._loaded.at(config)
            if at_hook is not None:
                return at_hook
        self._loaded = None  # before loading the next: two may not fit
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._report("loading the language model")
        self._loaded = _LoadedModel(config, self._report)
        at_hook = self._loaded.at(config)
        assert at_hook is not None
        return at_hook

    def _sae(self, path: Path, device: torch.device) -> SAE:
        try:
            key = (path, path.stat().st_ino, device)
        except FileNotFoundError:
            raise UserError(f"The SAE's file '{path}' no longer exists.") from None
        sae = self._saes.pop(key, None)
        if sae is None:
            self._report("reading the SAE")
            sae = SAE.load(path).to(device)
        self._saes[key] = sae
        while len(self._saes) > MAX_SAES:
            self._saes.popitem(last=False)
        return sae


class _LoadedModel:
    """The language model in memory, to be read at any hook within its loaded layers."""

    def __init__(self, config: ModelConfig, report: Report) -> None:
        self.model_key = _model_key(config)
        self._report = report
        self._model = LanguageModel.load(config)
        self._pieces = token_bytes(self._model.tokenizer, self._model.vocab_size)
        self._by_hook = {config.model_dump_json(): self._probe_model(self._model)}

    def at(self, config: ModelConfig) -> ProbeModel | None:
        """The model read at another hook; None if the loaded layers do not include it."""
        hook = config.model_dump_json()
        if hook not in self._by_hook:
            model = self._model.at(config)
            if model is None:
                return None
            self._by_hook[hook] = self._probe_model(model)
        return self._by_hook[hook]

    def _probe_model(self, model: LanguageModel) -> ProbeModel:
        return ProbeModel(model, lambda: SpliceModel(model, self._whole.model), self._pieces)

    @cached_property
    def _whole(self) -> SpliceModel:
        self._report("loading the rest of the language model")
        return self._model.full()


def _model_key(config: ModelConfig) -> str:
    """Equal for configurations of the same model in the same format on the same devices."""
    return config.model_dump_json(include={"name", "dtype", "device", "device_map"})
