"""HTML of the pages: headings, links, tokens, numbers in words, with all text escaped.

Fed by the vocabulary; read by `charts`, `shell`, the noun wings and `views`.
"""
