"""The features of an SAE: an exact index, and analyses, exports and labels made from it.

`training` builds the index; the backend reads it, without torch.
"""
