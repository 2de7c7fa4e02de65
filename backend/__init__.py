"""The server: a REST API over a database, and the supervisor of training jobs.

Its web process imports no torch.
"""
