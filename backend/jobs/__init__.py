"""Training jobs: queue, slots, supervisor, and the processes that run the engine.

Fed by `store` and `settings`; read by `http`, `routes` and `cli`.
"""
