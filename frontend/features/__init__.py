"""The parts of pages about features: details, lookups, matches, labels, own text, steering.

Uses `api`, `html`, `charts` and `shell`; used by `views`.
"""
