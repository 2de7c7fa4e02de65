"""Runs and the processes that carry them out: queue, devices, supervisor, worker.

Fed by `store` and `settings`; read by `http`, `routes` and `cli`.
"""
