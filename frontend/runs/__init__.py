"""The parts of pages about runs: lists, cards, curves, actions, alerts, the queue, comparison.

Uses `api`, `html`, `charts` and `shell`; used by `views`.
"""
