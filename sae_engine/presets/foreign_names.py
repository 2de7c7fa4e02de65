"""What the fields of other TopK trainers' configuration files are called here."""

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
NEEDLESS = {
    "model.input_dim": "It is read off the language model; leave it out.",
    "training.use_wandb": "Leave it out; naming a train.wandb_project turns Weights & Biases on.",
}


def advice(field: str) -> str | None:
    """What to write instead of another program's field, in one sentence; None if it is not
    known.
    """
    if field in CALLED_HERE:
        return f"It is called {CALLED_HERE[field]} here."
    return NEEDLESS.get(field)
