"""Questions about a person's own text, answered by a worker process that holds a language model.

Fed by `settings` and feature indexes; read by `http` and `routes`.
"""
