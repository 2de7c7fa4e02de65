"""The parts of pages about runs: lists, cards, curves, actions, alerts, the queue, comparison.

Fed by `api`, `html`, `charts` and `shell`; read by `views`.
"""
