"""Geometry of decoder rows: nearest rows between two SAEs, and 2-D maps.

`matches` and `layout` (torch) compute; `files` stores the results, which `features.analysis` reads
without torch.
"""
