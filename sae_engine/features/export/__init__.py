"""Writes the features of a run for other programs and for people without a server.

Each module writes one format into a new folder, reading through `FeatureIndex`, a few features at a
time. No torch here, so that the web process can do it.
"""
