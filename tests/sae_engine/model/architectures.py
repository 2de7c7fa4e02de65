"""Tiny random language models of many architectures, for the table in `docs/architectures.md`.

Every vocabulary is that of the embedded model's tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as hf
from transformers import PreTrainedModel

_COMMON: dict[str, Any] = {
    "vocab_size": 4096,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
_SHAPE: dict[str, Any] = {
    **_COMMON,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
_LLAMA: dict[str, Any] = {
    **_SHAPE,
    "intermediate_size": 24,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
_GPT2: dict[str, Any] = {**_COMMON, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64}
_HEADS: dict[str, Any] = {"head_dim": 8}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}


def _causal(name: str, config: str | None = None, **settings: Any) -> PreTrainedModel:
    made = getattr(hf, config or f"{name}Config")(**settings)
    head = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    return getattr(hf, name + head)(made)


def _gemma3_with_images() -> PreTrainedModel:
    text = hf.Gemma3TextConfig(**_LLAMA, **_HEADS, sliding_window=8).to_dict()
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "vision_use_head": False,
    }
    special = {k: v for k, v in _COMMON.items() if k != "vocab_size"}
    images = {"boi_token_index": 5, "eoi_token_index": 6, "image_token_index": 7}
    config = hf.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, **images, **special
    )
    return hf.Gemma3ForConditionalGeneration(config)


ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "bloom": lambda: _causal("Bloom", **_COMMON, hidden_size=16, n_layer=3, n_head=2),
    "codegen": lambda: _causal("CodeGen", **{**_GPT2, "n_head": 4}, rotary_dim=4),
    "cohere": lambda: _causal("Cohere", **_LLAMA, logit_scale=0.25),
    "cohere2": lambda: _causal("Cohere2", **_LLAMA, logit_scale=0.25, sliding_window=8),
    "falcon": lambda: _causal("Falcon", **_SHAPE, new_decoder_architecture=True),
    "gemma": lambda: _causal("Gemma", **_LLAMA, **_HEADS),
    "gemma2": lambda: _causal(
        "Gemma2", **_LLAMA, **_HEADS, query_pre_attn_scalar=8, sliding_window=8
    ),
    "gemma3_text": lambda: _causal(
        "Gemma3", "Gemma3TextConfig", **_LLAMA, **_HEADS, sliding_window=8
    ),
    "gemma3": _gemma3_with_images,
    "gpt2": lambda: _causal("GPT2", **_GPT2),
    "gpt_bigcode": lambda: _causal("GPTBigCode", **_GPT2),
    "gpt_neo": lambda: _causal(
        "GPTNeo",
        **_COMMON,
        hidden_size=16,
        num_layers=4,
        num_heads=2,
        max_position_embeddings=64,
        attention_types=[[["global", "local"], 2]],
        window_size=8,
    ),
    "gpt_neox": lambda: _causal(
        "GPTNeoX", **_SHAPE, intermediate_size=24, max_position_embeddings=64
    ),
    "gptj": lambda: _causal("GPTJ", **_GPT2, rotary_dim=4),
    "granite": lambda: _causal("Granite", **_LLAMA, logits_scaling=8.0, residual_multiplier=0.22),
    "llama": lambda: _causal("Llama", **_LLAMA),
    "mamba": lambda: _causal("Mamba", **_COMMON, hidden_size=16, num_hidden_layers=3, state_size=4),
    "mistral": lambda: _causal("Mistral", **_LLAMA, sliding_window=8),
    "mixtral": lambda: _causal("Mixtral", **_LLAMA, num_local_experts=4),
    "mpt": lambda: _causal("Mpt", **_COMMON, d_model=16, n_layers=3, n_heads=2, max_seq_len=64),
    "olmo": lambda: _causal("Olmo", **_LLAMA),
    "olmo2": lambda: _causal("Olmo2", **_LLAMA),
    "opt": lambda: _causal("OPT", **_SHAPE, ffn_dim=24, max_position_embeddings=64, word_embed_proj_dim=16),
    "opt-350m": lambda: _causal(
        "OPT",
        **_SHAPE,
        ffn_dim=24,
        max_position_embeddings=64,
        word_embed_proj_dim=8,
        do_layer_norm_before=False,
    ),
    "phi": lambda: _causal("Phi", **_LLAMA),
    "phi3": lambda: _causal("Phi3", **_LLAMA),
    "qwen2": lambda: _causal("Qwen2", **_LLAMA),
    "qwen2_moe": lambda: _causal(
        "Qwen2Moe", **_LLAMA, **_EXPERTS, shared_expert_intermediate_size=8
    ),
    "qwen3": lambda: _causal("Qwen3", **_LLAMA, **_HEADS),
    "qwen3_moe": lambda: _causal("Qwen3Moe", **_LLAMA, **_HEADS, **_EXPERTS),
    "recurrent_gemma": lambda: _causal(
        "RecurrentGemma", **_SHAPE, num_key_value_heads=1, intermediate_size=24, lru_width=16
    ),
    "smollm3": lambda: _causal("SmolLM3", **_LLAMA),
    "stablelm": lambda: _causal("StableLm", **_LLAMA),
    "starcoder2": lambda: _causal("Starcoder2", **_LLAMA),
}
