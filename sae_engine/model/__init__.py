"""The language model: loaded up to a hook point, read with nnsight, its states replaced.

Fed by `text` and `schema`; read by `activations`, `training` and `playground`.
"""
