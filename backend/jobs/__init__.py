"""Training jobs: queue, slots, supervisor, and the processes that run the engine.

Uses `store` and `settings`; used by `http`, `routes` and `cli`.
"""
