"""Computations too slow for a request, maps and matches, made by a worker process.

Fed by `settings` and feature indexes; read by `http` and `routes`.
"""
