"""Train TopK sparse autoencoders on language-model activations, and index their features."""

import os

# Read by OpenMP when PyTorch loads it: PyTorch's idle threads sleep instead of spinning, and
# leave their cores to the compiled kernels' threads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
