"""Numerical kernels: top-k selection, sparse decoding, training steps, and sorts for the index.

`reference` is the readable version, for any device; `cpu` and `gpu` hold the fast ones. Uses no
other wing; used by `sae` and `features`.
"""

from sae_engine.kernels.reference import decode, select_topk

__all__ = ["decode", "select_topk"]
