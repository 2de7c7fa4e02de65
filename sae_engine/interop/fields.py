"""The settings that each format is known to have. No torch.

A field that is listed is honored or refused by `formats` or `load`, or does not change what a
trained SAE computes. All others are named in a note, so that nothing is ignored in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


SAELENS = _names(
    """
    architecture d_in d_sae dtype device k metadata apply_b_dec_to_input normalize_activations
    reshape_activations rescale_acts_by_decoder_norm finetuning_scaling_factor activation_fn
    activation_fn_str activation_fn_kwargs hook_name hook_point hook_head_index
    hook_point_head_index hf_hook_name hook_name_out hook_point_out hook_head_index_out
    hf_hook_name_out d_out is_transcoder model_name model_class_name model_kwargs
    model_from_pretrained_kwargs prepend_bos seqpos_slice hook_layer hook_point_layer
    hook_layer_out hook_point_layer_out hook_eval context_size dataset_path dataset
    dataset_trust_remote_code streaming is_dataset_tokenized use_chat_formatting
    exclude_special_tokens sequence_separator_token disable_concat_sequences sae_lens_version
    sae_lens_training_version neuronpedia_id trained_with from_pretrained_path
    use_cached_activations cached_activations_path n_batches_in_buffer training_tokens
    total_training_tokens finetuning_tokens finetuning_method store_batch_size
    store_batch_size_prompts train_batch_size train_batch_size_tokens
    activations_mixing_fraction llm_device act_store_device prefetch_llm_batches seed autocast
    autocast_lm compile_llm llm_compilation_mode compile_sae sae_compilation_mode adam_beta1
    adam_beta2 lr lr_scheduler_name lr_warm_up_steps lr_end lr_decay_steps n_restart_cycles
    dead_feature_window feature_sampling_window feature_sampling_method feature_reinit_scale
    resample_batches dead_feature_threshold dead_feature_estimation_method n_eval_batches
    eval_batch_size_prompts logger n_checkpoints checkpoint_path save_final_checkpoint
    output_path resume_from_checkpoint verbose run_name log_to_wandb wandb_project wandb_entity
    wandb_id wandb_log_frequency wandb_log_frequency_lines eval_every_n_wandb_logs
    log_activations_store_to_wandb log_optimizer_state_to_wandb log_weights_to_wandb
    n_batches_for_norm_estimate sae tokens_per_buffer n_running_sparsity from_local_sae
    sparsity_path model_path expansion_factor b_dec_init_method decoder_init_norm
    decoder_orthogonal_init decoder_heuristic_init decoder_heuristic_init_norm
    init_encoder_as_decoder_transpose normalize_sae_decoder noise_density mse_loss_normalization
    l1_coefficient l1_warm_up_steps l1_loss_type lp_norm l0_coefficient l0_warm_up_steps
    target_l0 use_ghost_grads use_ghost_grads_loss scale_sparsity_penalty_by_decoder_norm
    aux_loss_coefficient pre_act_loss_coefficient use_sparse_activations topk_threshold_lr
    matryoshka_widths use_matryoshka_aux_loss jumprelu_bandwidth jumprelu_init_threshold
    jumprelu_sparsity_loss_mode jumprelu_ste_to_input jumprelu_tanh_scale
    """
)
"""SAELens 3 to 6, of a trained SAE or a checkpoint, and in `metadata`."""
MODEL_LOADING = _names(
    """
    fold_ln center_unembed fold_value_biases refactor_factored_attn_matrices dtype torch_dtype
    n_ctx first_n_layers device n_devices move_to_device default_padding_side
    default_prepend_bos tokenizer trust_remote_code cache_dir local_files_only low_cpu_mem_usage
    attn_implementation
    """
)
"""Of SAELens's `model_from_pretrained_kwargs`, those that change no activation at our sites."""
SPARSIFY = _names(
    """
    activation expansion_factor normalize_decoder num_latents k multi_topk skip_connection
    transcode signed d_in
    """
)
GEMMA_SCOPE = _names(
    """
    architecture model_name hf_hook_point_in hf_hook_point_out affine_connection width l0 type
    """
)
DICTIONARY_LEARNING = _names(
    """
    dict_class trainer_class k layer lm_name submodule_name activation_dim dict_size
    apply_b_dec_to_input lr steps seed device wandb_name warmup_steps decay_start
    sparsity_warmup_steps sparsity_penalty l1_penalty resample_steps auxk_alpha top_k_aux
    threshold_beta threshold_start_step target_l0 bandwidth sparsity_function
    sparsity_queue_length anneal_start anneal_end p_start p_end n_sparsity_updates
    group_fractions group_weights group_sizes num_groups k_anneal_steps dict_class_kwargs
    momentum use_cosine_annealing
    """
)
"""Of the section `trainer` in `config.json`."""
OURS = _names(
    """
    architecture d_in d_sae k ranks_by passes_mean activation dtype model_name hook_name hook_io
    dataset ctx_len step
    """
)


def note_on_unknown(
    file: str, settings: Mapping[str, Any], known: frozenset[str], section: str = ""
) -> list[str]:
    """A note that names the settings that are not `known`; none if all are, or have no value."""
    unknown = sorted(
        " ".join(f"{section}{name}"[:60].split())
        for name, value in settings.items()
        if name not in known and value not in (None, False, "", [], {})
    )
    if not unknown:
        return []
    shown = ", ".join(unknown[:8]) + (", …" if len(unknown) > 8 else "")
    return [
        f"{file} has settings that are unknown here and were ignored: {shown}; check that they do "
        "not change what the SAE computes."
    ]
