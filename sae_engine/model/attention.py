"""The attention that a language model computes with when many rows of one length are read on a GPU.

Eager attention writes all scores, [rows, heads, ctx, ctx], to memory several times per layer. The
alternatives keep them on the chip: PyTorch's scaled dot product attention, and FlexAttention for
models that cap their scores, as Gemma-2 does (arXiv 2408.00118, section 2), because scaled dot
product attention has no soft-cap. One is used if a trial shows that its output equals that of eager
attention. Used by `loading`.
"""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from sae_engine.model.hook_points import text_config, truncate

_log = logging.getLogger(__name__)

EAGER = "eager"
TRIAL_VOCAB = 64
TYPICAL_SCORE = 30.0
"""Size of a trial's attention scores: large enough that Gemma-2's soft-cap of 50 matters."""


def faster_attention(config: Any) -> str:
    """The name in transformers of the attention to try."""
    capped = getattr(text_config(config), "attn_logit_softcapping", None) is not None
    return "flex_attention" if capped else "sdpa"


def choose_attention(config: Any, ctx_len: int, dtype: torch.dtype, device: torch.device) -> str:
    """The name of the fastest attention that is accurate; a rejection is logged with its reason.

    On a CPU it is eager attention, which is the reference for parity and no slower there.
    """
    if device.type == "cpu":
        return EAGER
    name = faster_attention(config)
    reason = rejection_reason(config, name, ctx_len, dtype, device)
    if reason is None:
        return name
    _log.warning("Using the slower eager attention, because %s does not work: %s", name, reason)
    return EAGER


def rejection_reason(
    config: Any, name: str, ctx_len: int, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Why attention `name` must not be used on a device for rows of `ctx_len` tokens, or None.

    It is rejected if it raises, or if on two layers of the model's shape with random weights its
    error against float32 is more than twice that of eager attention, both in `dtype`.
    """
    try:
        exact, eager, other = (
            _trial(config, implementation, ctx_len, kind, device)
            for implementation, kind in ((EAGER, torch.float32), (EAGER, dtype), (name, dtype))
        )
    except Exception as error:  # whatever compilers and drivers raise
        return f"{type(error).__name__}: {error}"
    error, eager_error = (((x - exact).norm() / exact.norm()).item() for x in (other, eager))
    # It rounds at different points; in float32 only the order of sums differs.
    if error <= 2 * eager_error + 1e-4:
        return None
    return f"a trial's output is off by {error:.2%}, that of eager attention by {eager_error:.2%}"


@torch.inference_mode()
def _trial(
    config: Any, name: str, ctx_len: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The output of two layers with random weights, the same in each call, for random tokens: one
    row of two tokens, as when a model is loaded, and one or two rows of `ctx_len`.
    """
    language = copy.deepcopy(text_config(config))
    truncate(language, 2)
    language.vocab_size = TRIAL_VOCAB
    language.pad_token_id = None
    if getattr(language, "intermediate_size", None):
        language.intermediate_size = language.hidden_size
    if getattr(language, "sliding_window", None):
        language.sliding_window = max(1, ctx_len // 2)
    width = language.hidden_size
    head = getattr(language, "head_dim", None) or width // language.num_attention_heads
    # Queries and keys are sums over the width; their dot product over a head grows with its root.
    divided_by = math.sqrt(getattr(language, "query_pre_attn_scalar", None) or head)
    language.initializer_range = math.sqrt(TYPICAL_SCORE * divided_by / (width * math.sqrt(head)))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = AutoModel.from_config(language, attn_implementation=name, dtype=torch.float32)
        ids = torch.randint(TRIAL_VOCAB, (2 if ctx_len <= 2048 else 1, ctx_len))
    model = model.eval().to(device, dtype)
    first, rows = (
        model(part.to(device), use_cache=False).last_hidden_state.float()
        for part in (ids[:1, :2], ids)
    )
    return torch.cat([first.flatten(), rows.flatten()])
