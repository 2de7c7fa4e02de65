"""What all endpoints share: access control, limits, services, and the shapes of answers and errors.

Uses `store`, `jobs`, `analyses`, `labels` and `playground`; used by `routes` and `app`.
"""
