"""The process that holds a language model, and its client.

Fed by `settings`; read by `http` and `routes`.
"""
