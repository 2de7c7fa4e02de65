"""Questions about a person's own text, answered by a worker process that holds a language model.

Uses `settings` and feature indexes; used by `http` and `routes`.
"""
