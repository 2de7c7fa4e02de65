"""Train the embedded model: a small Gemma-2 on Python and the English of its documentation.

    python data/tiny_gemma2/train.py                     # about an hour and a half on two cores
    python data/tiny_gemma2/train.py --evaluate FOLDER   # bits per byte of held-out text

Writes `config.json`, `model.safetensors` (bfloat16), the tokenizer's files and `training.json` (the
settings and results) to `--output`, by default the folder of this script. After an interruption, it
continues from its last checkpoint. For the text, see `corpus`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from pathlib import Path

import corpus
import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from sae_engine.text.stdlib import stdlib_documents

HERE = Path(__file__).parent
CONTEXT = 256
VOCAB = 8192
PAD, EOS, BOS, UNK = "<pad>", "<eos>", "<bos>", "<unk>"
MOMENTUM, MUON_DECAY = 0.95, 0.01
DECAY_FRACTION = 0.2
"""The rate is constant until this fraction of the steps is left, so that a longer training can
continue from any checkpoint before."""
# Identifiers are one piece with their underscores and keep their leading space; punctuation,
# digits and runs of white space are separate tokens, so that `self` is the same token in `(self`
# and, apart from the space, in `f(x, self)`.
PIECES = r" ?[\p{L}_]+|\p{N}{1,3}| ?[^\s\p{L}\p{N}_]+|\s+(?!\S)|\s+"


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with Gemma's special tokens at Gemma's ids (pad 0, eos 1, bos 2)."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[PAD, EOS, BOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=24,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=BOS,
        unk_token=UNK,
        model_max_length=CONTEXT,
    )


def token_stream(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> np.ndarray:
    """The token ids of all documents, each followed by eos."""
    encoded = tokenizer.backend_tokenizer.encode_batch(documents, add_special_tokens=False)
    return np.concatenate([np.array([*e.ids, 1], np.int64) for e in encoded])


def model_config() -> Gemma2Config:
    return Gemma2Config(
        vocab_size=VOCAB,
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=48,
        query_pre_attn_scalar=48,
        max_position_embeddings=512,
        sliding_window=128,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        attn_implementation="eager",
        use_cache=False,
    )


@torch.no_grad()
def initialize_(model: Gemma2ForCausalLM) -> None:
    """Initialize the weights so that the embedding does not drown in the residual stream.

    Gemma's norms after attention and MLP give each layer's contribution unit size for any weights,
    so by default twelve random contributions of unit size are added to an embedding of size 0.28.
    Here embeddings have unit size (the model multiplies them by sqrt(width)), contributions 1 /
    sqrt(12), and matrices 1 / sqrt(fan_in).
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        elif "post_" in name:
            parameter.fill_((2 * model.config.num_hidden_layers) ** -0.5 - 1)


def batches(stream: np.ndarray, rows: int, step: int, seed: int = 0) -> torch.Tensor:
    """Batch number `step`: rows of BOS and CONTEXT - 1 tokens, at a new offset in each epoch."""
    per_row = CONTEXT - 1
    per_epoch = (len(stream) - per_row) // per_row // rows
    epoch, at = divmod(step, per_epoch)
    rng = np.random.default_rng((seed, epoch))
    offset = int(rng.integers(per_row))
    order = rng.permutation((len(stream) - offset) // per_row)[at * rows : (at + 1) * rows]
    body = stream[offset + order[:, None] * per_row + np.arange(per_row)]
    return torch.from_numpy(np.concatenate([np.full((rows, 1), 2), body], axis=1))


@torch.no_grad()
def heldout_loss(model: Gemma2ForCausalLM, stream: np.ndarray, max_tokens: int) -> float:
    """Mean cross-entropy in nats over packed rows; each token is predicted once."""
    per_row = CONTEXT - 1
    rows = min(len(stream), max_tokens) // per_row
    body = torch.from_numpy(stream[: rows * per_row].reshape(rows, per_row))
    ids = torch.cat([torch.full((rows, 1), 2), body], dim=1)
    total = 0.0
    for part in ids.split(32):
        logits = model(input_ids=part[:, :-1]).logits
        total += cross_entropy(
            logits.flatten(0, 1).float(), part[:, 1:].flatten(), reduction="sum"
        ).item()
    return total / (rows * per_row)


def bits_per_byte(model: Gemma2ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> float:
    """Compression of the held-out text, comparable between tokenizers."""
    documents = stdlib_documents("heldout")
    stream = token_stream(tokenizer, documents)
    nats = heldout_loss(model, stream, len(stream)) * len(stream)
    return nats / math.log(2) / sum(len(d.encode()) for d in documents)


def load(folder: Path) -> Gemma2ForCausalLM:
    return Gemma2ForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized (Jordan et al. 2024, "Muon").

    In float32, because `torch.optim.Muon` computes in bfloat16, which most CPUs only emulate.
    """

    def __init__(self, matrices: list[torch.nn.Parameter], lr: float) -> None:
        super().__init__(matrices, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for matrix in group["params"]:
                momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 1 - MOMENTUM)
                update = orthogonalized(matrix.grad.lerp(momentum, MOMENTUM))
                scale = max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.mul_(1 - group["lr"] * MUON_DECAY).sub_(update, alpha=group["lr"] * scale)


@torch.compile
def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """Nearly U V^T of the singular value decomposition, by Newton and Schulz's iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


def learning_rate(step: int, total: int, peak: float) -> float:
    """Warm-up, a constant rate, then a linear decay to 0."""
    warm_up = 100
    left = (total - step) / (DECAY_FRACTION * total)
    return peak * min((step + 1) / warm_up, left, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--scratch", type=Path, default=Path("data/local/tiny_gemma2"))
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--evaluate", type=Path, metavar="FOLDER")
    parser.add_argument("--stop-after", type=int, help="last step, to time a few")
    args = parser.parse_args()
    if args.evaluate:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.evaluate)
        print(f"{bits_per_byte(load(args.evaluate), tokenizer):.4f} bits per byte")
        return
    args.scratch.mkdir(parents=True, exist_ok=True)
    checkpoint = args.scratch / "checkpoint.pt"

    # Products in bfloat16 where the processor has them: a step takes about three quarters.
    torch.set_float32_matmul_precision("medium")
    documents = corpus.training_documents()
    tokenizer = train_tokenizer(documents)
    tokenizer.save_pretrained(args.output)
    train = token_stream(tokenizer, documents)
    heldout = token_stream(tokenizer, stdlib_documents("heldout"))
    print(f"tokens: train {len(train):,}, held out {len(heldout):,}", flush=True)

    torch.manual_seed(0)
    model = Gemma2ForCausalLM(model_config()).train()
    initialize_(model)
    num_parameters = sum(p.numel() for p in model.parameters())
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim < 2 or "embed" in name]
    adam = torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.95), weight_decay=0, fused=True)
    optimizers = [adam, Muon(matrices, args.muon_lr)]
    start, seconds_before = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        start, seconds_before = state["step"], state["seconds"]

    @torch.compile
    def training_loss(ids: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids[:, :-1]).logits
        return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    began = time.monotonic()
    for step in range(start, args.steps):
        ids = batches(train, args.rows, step)
        for optimizer, peak in zip(optimizers, (args.lr, args.muon_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args.steps, peak)
        loss = training_loss(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        done = step + 1
        if done % 20 == 0 or done == args.stop_after:
            elapsed = time.monotonic() - began
            rate = (done - start) * args.rows * CONTEXT / elapsed
            print(f"step {done} loss {loss.item():.3f} {rate:.0f} tokens/s", flush=True)
        if done == args.stop_after:
            return
        if done % 100 == 0 or done == args.steps:
            state = {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": done,
                "seconds": seconds_before + time.monotonic() - began,
            }
            temporary = checkpoint.with_suffix(".tmp")
            torch.save(state, temporary)
            temporary.replace(checkpoint)
            print(
                f"step {done} held-out {heldout_loss(model.eval(), heldout, 40_000):.4f}",
                flush=True,
            )
            model.train()

    seconds = seconds_before + time.monotonic() - began
    model = model.eval().to(torch.bfloat16)
    model.config.dtype = "bfloat16"
    model.save_pretrained(args.output)
    report = {
        "parameters": num_parameters,
        "steps": args.steps,
        "tokens_per_step": args.rows * CONTEXT,
        "train_tokens": len(train),
        "heldout_tokens": len(heldout),
        "minutes": round(seconds / 60, 1),
        "heldout_bits_per_byte": round(bits_per_byte(load(args.output), tokenizer), 4),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    }
    (args.output / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
