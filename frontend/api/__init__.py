"""The REST API as the pages see it: one typed client, its calls, and answers kept for seconds.

Fed by the vocabulary, `sae_engine.schema`; read by every page.
"""
