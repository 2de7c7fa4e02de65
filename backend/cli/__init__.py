"""The console script `sae-workbench`: options, training in the terminal, tables, exports.

Uses `store`, `jobs` and the engine; no other wing uses it.
"""
