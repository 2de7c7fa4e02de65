"""HTML of the pages: headings, links, tokens, formatted numbers, with all text escaped.

Fed by the vocabulary; read by `charts`, `shell`, the noun wings and `views`.
"""
