"""What all endpoints share: access control, limits, services, and the shapes of answers and errors.

Fed by `store`, `jobs`, `analyses`, `labels` and `playground`; read by `routes` and `app`.
"""
