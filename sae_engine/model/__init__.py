"""The language model: loaded up to a hook point, read there, and run with activations replaced.

Fed by `schema`; read by `activations`, `training` and `playground`.
"""
