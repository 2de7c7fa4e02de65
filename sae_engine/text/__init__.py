"""Text: documents from their sources, packed into rows of tokens.

Fed by `schema`; read by `activations`.
"""
