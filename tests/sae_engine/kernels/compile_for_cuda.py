"""Compile every Triton kernel for a CUDA GPU, which need not exist, and print the kernels' names.

Run as a program by `test_triton_kernels`, without Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sae_engine.kernels.adam import BETA1, BETA2, EPSILON
from sae_engine.kernels.gpu import codes as triton_codes
from sae_engine.kernels.gpu import rows as triton_rows
from sae_engine.kernels.gpu import select as triton_select

TYPES = {
    **dict.fromkeys(("n", "d", "k", "d_in", "stride", "length", "ties_wanted"), "i32"),
    **dict.fromkeys(("added", "size", "root_correction"), "fp32"),
    **dict.fromkeys(("found", "counts", "kept", "indices", "starts", "lengths"), "*i32"),
    "needed": "*i1",
    "shadow": "*bf16",
}
"""Types of arguments; all others are pointers to float32."""
TILE = {"ROWS": triton_codes.ROWS, "COLUMNS": triton_codes.MAX_COLUMNS}
ADAM = {"BETA1": BETA1, "BETA2": BETA2, "EPSILON": EPSILON}


def kernels() -> Iterator[tuple[Any, dict[str, Any], dict[str, str]]]:
    """Kernels with their constants and the types that differ from `TYPES`."""
    for scores, width in (("*fp32", 4096), ("*bf16", 1024)):
        block = {"CAPACITY": width, "BLOCK": width}
        yield triton_select.find_candidates, block, {"dots": scores}
        yield triton_select.keep_best, {"WIDTH": width}, {}
    yield triton_codes._decode, TILE, {}
    for has_bias in (False, True):
        yield triton_codes._gather_dot, {**TILE, "HAS_BIAS": has_bias}, {}
    pairs = {"rows": "*i32"}
    yield triton_rows._sum_pairs, {"PAIRS": triton_rows.PAIRS}, pairs
    for project, tied in ((False, False), (False, True), (True, False)):
        shape = {**TILE, "PROJECT": project, "TIED": tied}
        measures = {"MEASURES_ALONG": tied}
        yield triton_rows._reduce_rows, {**shape, **measures}, pairs
        yield triton_rows._update, {**shape, **ADAM, "HAS_SHADOW": not project}, pairs
    yield triton_rows._update_vector, {**ADAM, "COLUMNS": triton_rows.VECTOR}, {}


def main() -> None:
    target = GPUTarget("cuda", 80, 32)
    for kernel, constants, others in kernels():
        types = {name: {**TYPES, **others}.get(name, "*fp32") for name in kernel.arg_names}
        types |= dict.fromkeys(constants, "constexpr")
        places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        triton.compile(ASTSource(kernel, types, places), target)
        print(kernel.__name__, flush=True)


if __name__ == "__main__":
    main()
