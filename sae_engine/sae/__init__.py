"""The TopK SAE: its equations, its loss, and one optimizer step by three engines.

Fed by `kernels`; read by `interop`, `training` and `playground`.
"""
