"""Activations that SAEs are trained and evaluated on: shuffled stream, held-out set, files of both.

Fed by `model` and `text`; read by `training`.
"""
