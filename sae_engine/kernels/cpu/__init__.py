"""The exact sparse training step on a CPU, compiled by numba.

Called by `sae`; `step` is the entry point.
"""
