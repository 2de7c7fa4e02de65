"""What the pages about features are made of: labels, matches, own text, steering.

Fed by `api`, `html`, `charts` and `shell`; read by `views`.
"""
