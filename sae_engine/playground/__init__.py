"""A person's own text: which features fire on it, and how the model continues it steered.

Fed by `model`, `sae` and `features`; read by the process that holds a language model.
"""
