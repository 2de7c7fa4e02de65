"""The REST API as the pages use it: a typed client, its calls, and a short-lived cache.

Uses the vocabulary, `sae_engine.schema`; used by every other wing.
"""
