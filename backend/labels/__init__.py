"""Automatic labels: which features to label, the jobs, and the language model that answers.

Uses `store` and feature indexes; used by `http` and `routes`.
"""
