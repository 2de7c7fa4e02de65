"""The features of an SAE: an exact index, and analyses, exports and labels made from it.

Uses `kernels`; used by `training`, which builds the index, and, without torch, by the backend.
"""
