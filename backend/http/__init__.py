"""What every request passes: who may ask, how much, and the shapes and problems of answers.

Fed by `store`, `jobs`, `analyses`, `labels` and `playground`; read by `routes` and `app`.
"""
