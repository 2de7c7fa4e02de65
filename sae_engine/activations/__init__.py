"""Activations on their way to the SAEs: a shuffled stream, a held-out set, files of both.

Fed by `model` and `text`; read by `training`.
"""
