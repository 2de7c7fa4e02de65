"""SAEs in and out: `load` reads those trained elsewhere, `export` writes ours for SAELens."""
