"""Automatic labels: which features, which questions, and the endpoint that answers.

Fed by `store` and feature indexes; read by `http` and `routes`.
"""
