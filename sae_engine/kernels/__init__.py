"""Selection and sparse decoding: one dispatch point for all devices.

The readable reference serves every device; a faster path for a device is chosen here and nowhere
else.
"""

from sae_engine.kernels.reference import decode, select_topk

__all__ = ["decode", "select_topk"]
