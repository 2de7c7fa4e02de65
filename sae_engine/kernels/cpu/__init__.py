"""The exact sparse step on a CPU, compiled by Numba.

Fed by `kernels`; read by `sae`.
"""
