"""SAE files: `formats` says what those of other libraries are, `load` reads them, `export` writes
ours for SAELens, and `push` puts them on the hub. Only `load`, `weights` and the process of
`pickles` need torch.

Uses `sae`; used by `training`, `features.export` and the backend.
"""
