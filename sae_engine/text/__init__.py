"""Text: documents from their sources, packed into rows of tokens.

Uses `schema`; used by `activations`.
"""
