"""The server: REST over a database, and the supervision of training jobs. Its web process imports
no torch.
"""
