"""SAE files: `load` reads SAEs of other libraries, `export` writes ours for SAELens.

Fed by `sae`; read by `training`, `features.export` and the backend.
"""
