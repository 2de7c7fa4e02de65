"""The vocabulary of SAE Workbench: configuration, records and the shapes of the REST API.

Fed by no other wing, and free of torch; read by all three packages.
"""
