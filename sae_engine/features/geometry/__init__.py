"""What decoder rows say about each other: which rows of two SAEs point the same way, and where
those of one lie on a map.

`matches` and `layout` (torch) compute; `files` and `comparison` answer from what they wrote,
without torch.
"""
