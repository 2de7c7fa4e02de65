"""The REST API as the pages use it: a typed client, its calls, and a short-lived cache.

Fed by the vocabulary, `sae_engine.schema`; read by every other wing.
"""
