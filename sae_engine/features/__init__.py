"""What is known about an SAE's features: an exact index, and what is made of it.

Fed by `training`, which builds it; read, without torch, by the backend and by exports.
"""
