"""The parts of pages about features: details, lookups, matches, labels, own text, steering.

Fed by `api`, `html`, `charts` and `shell`; read by `views`.
"""
