"""The vocabulary of SAE Workbench: configuration, records and the shapes of the REST API.

Uses no other wing and no torch; used by all three packages.
"""
