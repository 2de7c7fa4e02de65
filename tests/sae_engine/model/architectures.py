"""Tiny random language models of many architectures, for the table in `docs/architectures.md`.

Every vocabulary is that of the embedded model's tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as hf
from transformers import PreTrainedModel

_COMMON: dict[str, Any] = {
    "vocab_size": 8192,
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


_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,  # as many as the language part is cut to
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_SPECIAL = {name: id_ for name, id_ in _COMMON.items() if name != "vocab_size"}


def _gemma3_with_images() -> PreTrainedModel:
    text = hf.Gemma3TextConfig(**_LLAMA, **_HEADS, sliding_window=8).to_dict()
    config = hf.Gemma3Config(
        text_config=text,
        vision_config=_VISION | {"vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=5,
        eoi_token_index=6,
        image_token_index=7,
        **_SPECIAL,
    )
    return hf.Gemma3ForConditionalGeneration(config)


def _llava() -> PreTrainedModel:
    config = hf.LlavaConfig(
        text_config=hf.LlamaConfig(**_LLAMA),
        vision_config=hf.CLIPVisionConfig(**_VISION),
        image_token_index=7,
    )
    return hf.LlavaForConditionalGeneration(config)


def _qwen2_vl() -> PreTrainedModel:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 14}
    config = hf.Qwen2VLConfig(
        text_config=_LLAMA | {"rope_parameters": rope}, vision_config=vision, **_SPECIAL
    )
    return hf.Qwen2VLForConditionalGeneration(config)


ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "bloom": lambda: _causal("Bloom", **_COMMON, hidden_size=16, n_layer=3, n_head=2),
    "codegen": lambda: _causal("CodeGen", **{**_GPT2, "n_head": 4}, rotary_dim=4),
    "cohere": lambda: _causal("Cohere", **_LLAMA, logit_scale=0.25),
    "cohere2": lambda: _causal("Cohere2", **_LLAMA, logit_scale=0.25, sliding_window=8),
    "deepseek_v3": lambda: _causal(
        "DeepseekV3",
        **(_LLAMA | {"num_key_value_heads": 2}),
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
        n_shared_experts=1,
    ),
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
    "gpt_oss": lambda: _causal(
        "GptOss", **_LLAMA, **_HEADS, num_local_experts=4, num_experts_per_tok=2, sliding_window=8
    ),
    "gptj": lambda: _causal("GPTJ", **_GPT2, rotary_dim=4),
    "granite": lambda: _causal("Granite", **_LLAMA, logits_scaling=8.0, residual_multiplier=0.22),
    "glm4": lambda: _causal("Glm4", **_LLAMA, **_HEADS),
    "lfm2": lambda: _causal("Lfm2", **_LLAMA, full_attn_idxs=[1]),
    "llama": lambda: _causal("Llama", **_LLAMA),
    "llava": _llava,
    "mamba": lambda: _causal("Mamba", **_COMMON, hidden_size=16, num_hidden_layers=3, state_size=4),
    "mamba2": lambda: _causal(
        "Mamba2",
        **_COMMON,
        hidden_size=16,
        num_hidden_layers=3,
        state_size=4,
        num_heads=4,
        head_dim=8,
        n_groups=1,
    ),
    "mistral": lambda: _causal("Mistral", **_LLAMA, sliding_window=8),
    "mixtral": lambda: _causal("Mixtral", **_LLAMA, num_local_experts=4),
    "mpt": lambda: _causal("Mpt", **_COMMON, d_model=16, n_layers=3, n_heads=2, max_seq_len=64),
    "olmo": lambda: _causal("Olmo", **_LLAMA),
    "olmo2": lambda: _causal("Olmo2", **_LLAMA),
    "olmo3": lambda: _causal("Olmo3", **_LLAMA, sliding_window=8),
    "opt": lambda: _causal(
        "OPT", **_SHAPE, ffn_dim=24, max_position_embeddings=64, word_embed_proj_dim=16
    ),
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
    "qwen2_vl": _qwen2_vl,
    "qwen3": lambda: _causal("Qwen3", **_LLAMA, **_HEADS),
    "qwen3_moe": lambda: _causal("Qwen3Moe", **_LLAMA, **_HEADS, **_EXPERTS),
    "recurrent_gemma": lambda: _causal(
        "RecurrentGemma", **_SHAPE, num_key_value_heads=1, intermediate_size=24, lru_width=16
    ),
    "smollm3": lambda: _causal("SmolLM3", **_LLAMA),
    "stablelm": lambda: _causal("StableLm", **_LLAMA),
    "starcoder2": lambda: _causal("Starcoder2", **_LLAMA),
}
