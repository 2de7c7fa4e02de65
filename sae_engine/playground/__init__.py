"""The user's own text: which features are active on it, and how the model continues it steered.

Uses `model`, `sae` and `features`; used by the playground's worker process.
"""
