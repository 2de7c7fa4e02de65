"""The console script `sae-workbench`: options, training in the terminal, tables, exports.

Fed by `store`, `jobs` and the engine; read by nobody.
"""
