"""Making one SAE's features browsable: our index of all of them, sae-dashboard's data for some.

    python benchmarks/peers/dashboard.py --venvs DIR [--run RUN_FOLDER] [--features 512]

Both read the same rows of text through the embedded language model and analyze the same SAE, that
of preset `tiny`; RUN_FOLDER is a finished run of it, otherwise one is trained. sae-dashboard gets a
virtual environment in DIR, created with pip if missing, and reads the SAE through SAELens. Loading
the model and the SAE is not counted. The largest activation of each feature is compared to check
that both analyzed the same.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _common import parser, peer_python

PACKAGES = ["torch>=2.11,<2.14", "sae-dashboard==0.8.0", "pyarrow<21"]
MODEL = Path(__file__).resolve().parents[2] / "data" / "tiny_gemma2"
LAYER, BOS, EOS = 2, 2, 1
RESULT = "result.json"
"""Written by the process of either side."""


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--venvs", type=Path, required=True)
    arguments.add_argument("--run", type=Path)
    arguments.add_argument("--features", type=int, default=512)
    arguments.add_argument("--tokens", type=int, default=200_000)
    arguments.add_argument("--repeats", type=int, default=2)
    arguments.add_argument("--side", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    arguments.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.side == "ours":
        return ours(options.folder, options.tokens)
    if options.side == "theirs":
        return theirs(options.folder, options.features)
    theirs_python = peer_python(options.venvs / "sae-dashboard", PACKAGES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.run, options.tokens)
        results: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
        for _ in range(options.repeats):
            for side, python in (("ours", sys.executable), ("theirs", theirs_python)):
                command = [python, __file__, "--venvs", str(options.venvs), "--side", side]
                command += ["--folder", name, "--features", str(options.features)]
                command += ["--tokens", str(options.tokens)]
                environment = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
                subprocess.run(command, check=True, env=environment)
                results[side].append(json.loads((folder / RESULT).read_text()))
        report(results, options.features)
    return None


def prepare(folder: Path, run: Path | None, num_tokens: int) -> None:
    """Write the SAE in both formats and the rows of tokens."""
    from tokenizers import Tokenizer

    from sae_engine.files import RunFolder
    from sae_engine.interop.export import export_saelens
    from sae_engine.presets import resolve_config
    from sae_engine.text.packing import Packing, each_heldout_row
    from sae_engine.training.loop import train

    config = resolve_config("tiny", {})
    if run is None:
        run = folder / "run"
        for _ in train(config, RunFolder(run)):
            pass
    export_saelens(RunFolder(run), folder / "saelens")
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    packing = Packing(tokenizer, config.data.ctx_len, BOS, EOS)
    rows = islice(each_heldout_row(config.data, packing), packing.rows_holding(num_tokens))
    np.save(folder / "rows.npy", np.stack(list(rows)))


def ours(folder: Path, num_tokens: int) -> None:
    """A run that only analyzes the SAE: activations, codes, index of all features."""
    from sae_engine.features.index.reader import FeatureIndex
    from sae_engine.files import RunFolder
    from sae_engine.presets import resolve_config
    from sae_engine.schema.records import PhaseRecord, SnapshotRecord
    from sae_engine.training.loop import train

    config = resolve_config(
        "tiny",
        {
            "sae": {"pretrained": str(folder / "saelens")},
            "data": {"heldout_tokens": num_tokens},
            "index": {"tokens": num_tokens},
        },
    )
    run = RunFolder(folder / f"ours-{time.time_ns()}")
    seconds, began, phase = 0.0, time.perf_counter(), ""
    for record in train(config, run):
        now = time.perf_counter()
        if phase == "reading held-out text" or phase.endswith("ing the feature index"):
            seconds += now - began
        began = now
        if isinstance(record, PhaseRecord):
            phase = record.phase
        if isinstance(record, SnapshotRecord):
            break
    index = FeatureIndex.open(run.feature_index(0))
    largest = index.max_activations(list(range(index.d_sae)))
    write(folder, seconds=seconds, features=index.d_sae, tokens=index.num_tokens, largest=largest)


def theirs(folder: Path, num_features: int) -> None:
    """`SaeVisRunner` as documented, which computes the data of its pages."""
    import torch
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner
    from sae_lens import SAE, HookedSAETransformer
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions.gemma import convert_gemma_weights
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    rows = torch.from_numpy(np.load(folder / "rows.npy").astype(np.int64))
    source = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    given = source.config
    config = HookedTransformerConfig(
        d_model=given.hidden_size, d_head=given.head_dim, n_heads=given.num_attention_heads,
        d_mlp=given.intermediate_size, n_layers=given.num_hidden_layers, n_ctx=rows.shape[1],
        d_vocab=given.vocab_size, eps=given.rms_norm_eps, act_fn="gelu_pytorch_tanh",
        n_key_value_heads=given.num_key_value_heads, normalization_type="RMS",
        positional_embedding_type="rotary", rotary_base=10_000, rotary_dim=given.head_dim,
        window_size=given.sliding_window, use_local_attn=True, gated_mlp=True, final_rms=True,
        attn_types=["local", "global"] * (given.num_hidden_layers // 2),
        attn_scores_soft_cap=given.attn_logit_softcapping, default_prepend_bos=False,
        output_logits_soft_cap=given.final_logit_softcapping, attn_scale=given.head_dim**0.5,
        use_attn_scale=True, use_normalization_before_and_after=True, device="cpu",
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(MODEL / "tokenizer.json"),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        add_bos_token=True,
        name_or_path="tiny-gemma2",
    )
    model = HookedSAETransformer(config, tokenizer=tokenizer)
    weights = convert_gemma_weights(source, config)
    model.load_state_dict(model.state_dict() | weights)
    sae = SAE.load_from_disk(str(folder / "saelens"))
    sae.fold_W_dec_norm = lambda: None  # rows have unit norm already, and it refuses TopK SAEs
    wanted = SaeVisConfig(
        hook_point=f"blocks.{LAYER}.hook_resid_post",
        features=list(range(num_features)),
        ignore_tokens={BOS},
        minibatch_size_features=256,
    )
    began = time.perf_counter()
    data = SaeVisRunner(wanted).run(encoder=sae, model=model, tokens=rows)
    seconds = time.perf_counter() - began
    largest = [
        max(
            (max(s.feat_acts) for g in data.feature_data_dict[i].sequence_data.seq_group_data
             for s in g.seq_data),
            default=0.0,
        )
        for i in range(num_features)
    ]  # fmt: skip
    write(folder, seconds=seconds, features=num_features, tokens=rows.numel(), largest=largest)


def write(folder: Path, **result: object) -> None:
    (folder / RESULT).write_text(json.dumps(result))


def report(results: dict[str, list[dict[str, Any]]], num_features: int) -> None:
    a, b = (np.array(results[side][-1]["largest"][:num_features]) for side in ("ours", "theirs"))
    agree = np.isclose(a, b, rtol=0.01, atol=0.01)
    print(f"largest activation equal in {agree.sum()} of {num_features} features")
    medians = {s: float(np.median([r["seconds"] for r in found])) for s, found in results.items()}
    per_feature = {s: medians[s] / results[s][-1]["features"] for s in results}
    for side, found in results.items():
        runs = ", ".join(f"{r['seconds']:.1f}" for r in found)
        last = found[-1]
        print(f"{side:7} {last['features']:6,} features on {last['tokens']:,} tokens: {runs} s")
    ratio = medians["theirs"] / medians["ours"]
    print(f"{num_features} of theirs take {ratio:.1f} times as long as all of ours")
    print(f"per feature: {per_feature['theirs'] / per_feature['ours']:.0f}")


if __name__ == "__main__":
    main()
