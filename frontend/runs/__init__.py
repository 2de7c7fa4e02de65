"""What the pages about runs are made of: lists, cards, actions, alerts, the queue, comparison.

Fed by `api`, `html`, `charts` and `shell`; read by `views`.
"""
