"""The language model: loaded up to a hook point, read there, and run with activations replaced.

Uses `schema`; used by `activations`, `training` and `playground`.
"""
