"""The user's own text: which features are active on it, and how the model continues it steered.

Fed by `model`, `sae` and `features`; read by the playground's worker process.
"""
