"""The TopK SAE: its equations, its loss, its published files, and optimizer steps for CPU and GPU.

Uses `kernels`; used by `interop`, `training` and `playground`.
"""
