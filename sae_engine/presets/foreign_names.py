"""Our names for fields in the configuration files of other TopK trainers."""

from __future__ import annotations

CALLED_HERE = {
    "model.hidden_dim": "sae.d_sae",
    "model.k": "sae.k",
    "model.tied_weights": "sae.tied_weights",
    "model.normalize_decoder": "sae.normalize_decoder",
    "data.model_name": "model.name",
    "data.layer_name": "model.hook_point",
    "data.dataset_name": "data.dataset",
    "data.max_length": "data.ctx_len",
    "training.learning_rate": "train.lr",
    "training.batch_size": "train.batch_size_tokens",
    "training.num_epochs": "train.num_epochs",
    "training.l1_lambda": "train.l1_lambda",
    "training.eval_every": "train.eval_every",
    "training.save_every": "train.save_every",
    "training.wandb_project": "train.wandb_project",
    "training.use_tensorboard": "train.tensorboard",
}
UNNEEDED = {
    "model.input_dim": "Leave it out; the width is read from the language model.",
    "training.use_wandb": "Leave it out; setting train.wandb_project turns on Weights & Biases.",
}


def advice(field: str) -> str | None:
    """What to write instead of another program's field, in one sentence; None if unknown."""
    if field in CALLED_HERE:
        return f"It is called {CALLED_HERE[field]} here."
    return UNNEEDED.get(field)
