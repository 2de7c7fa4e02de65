"""Activations that SAEs are trained and evaluated on: shuffled stream, held-out set, files of both.

Uses `model` and `text`; used by `training`.
"""
