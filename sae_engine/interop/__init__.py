"""SAE files: `load` reads SAEs of other libraries, `export` writes ours for SAELens."""
