"""The REST endpoints, one module per noun; each is a thin door to the repository or a feature
index.
"""
