"""The features of an SAE: an exact index, and analyses, exports and labels made from it.

Fed by `training`, which builds the index; read, without torch, by the backend.
"""
