"""The same step on a GPU, as Triton kernels.

Fed by nothing of the project; read by `sae`.
"""
