"""Automatic labels: which features to label, the jobs, and the language model that answers.

Fed by `store` and feature indexes; read by `http` and `routes`.
"""
