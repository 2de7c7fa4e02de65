"""The TopK SAE: its equations, its loss, its published files, and optimizer steps for CPU and GPU.

Fed by `kernels`; read by `interop`, `training` and `playground`.
"""
