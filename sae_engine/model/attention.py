"""Which attention a language model computes with, where many rows of one length are read on a GPU.

Eager attention writes out all scores, [rows, heads, ctx, ctx], several times a layer. Others keep
them on the chip: PyTorch's scaled dot products, and for models that cap their scores, as Gemma-2
does (arXiv 2408.00118, section 2), FlexAttention, since scaled dot products have no soft-cap. One
of them is taken when a trial shows that it gives what eager attention gives. Used by
`model_loading`.
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
    """What transformers calls the attention that is worth a trial."""
    capped = getattr(text_config(config), "attn_logit_softcapping", None) is not None
    return "flex_attention" if capped else "sdpa"


def choose_attention(config: Any, ctx_len: int, dtype: torch.dtype, device: torch.device) -> str:
    """The name of the fastest attention that passes `find_obstacle`; why it does not is logged.

    On a CPU eager attention is what parity is measured against, and no slower.
    """
    if device.type == "cpu":
        return EAGER
    name = faster_attention(config)
    obstacle = find_obstacle(config, name, ctx_len, dtype, device)
    if obstacle is None:
        return name
    _log.warning("Attention takes the slower way, because %s does not work: %s", name, obstacle)
    return EAGER


def find_obstacle(
    config: Any, name: str, ctx_len: int, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Why the attention `name` is not to be trusted on a device for rows of `ctx_len` tokens, if it
    is not: it raises, or on two layers of the model's shape with random weights it is more than
    twice as far from float32 as eager attention is, both in `dtype`.
    """
    try:
        exact, eager, other = (
            _trial(config, implementation, ctx_len, kind, device)
            for implementation, kind in ((EAGER, torch.float32), (EAGER, dtype), (name, dtype))
        )
    except Exception as error:  # whatever compilers and drivers raise
        return f"{type(error).__name__}: {error}"
    error, eager_error = (((x - exact).norm() / exact.norm()).item() for x in (other, eager))
    # Roundings come in other places; in float32 only the order of sums differs.
    if error <= 2 * eager_error + 1e-4:
        return None
    return f"a trial's output is off by {error:.2%}, that of eager attention by {eager_error:.2%}"


@torch.inference_mode()
def _trial(
    config: Any, name: str, ctx_len: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What two layers with random weights, the same in each call, make of random tokens: of a row
    of two, as a model is tried with when it is loaded, and of one or two as they will be read.
    """
    config = copy.deepcopy(config)
    truncate(text_config(config), 2)
    language = text_config(config)
    language.vocab_size = TRIAL_VOCAB
    language.pad_token_id = None
    if getattr(language, "intermediate_size", None):
        language.intermediate_size = language.hidden_size
    if getattr(language, "sliding_window", None):
        language.sliding_window = max(1, ctx_len // 2)
    width = language.hidden_size
    head = getattr(language, "head_dim", None) or width // language.num_attention_heads
    # Queries and keys are sums over the width; their products' sum over a head grows with its root.
    divided_by = math.sqrt(getattr(language, "query_pre_attn_scalar", None) or head)
    language.initializer_range = math.sqrt(TYPICAL_SCORE * divided_by / (width * math.sqrt(head)))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = AutoModel.from_config(config, attn_implementation=name, dtype=torch.float32)
        ids = torch.randint(TRIAL_VOCAB, (2 if ctx_len <= 2048 else 1, ctx_len))
    model = model.eval().to(device, dtype)
    first, rows = (
        model(part.to(device), use_cache=False).last_hidden_state.float()
        for part in (ids[:1, :2], ids)
    )
    return torch.cat([first.flatten(), rows.flatten()])
