"""Computations too slow for a request, maps and matches, made by a worker process.

Uses `settings` and feature indexes; used by `http` and `routes`.
"""
