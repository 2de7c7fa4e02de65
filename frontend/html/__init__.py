"""HTML of the pages: headings, links, tokens, formatted numbers, with all text escaped.

Uses the vocabulary; used by `charts`, `shell`, the noun wings and `views`.
"""
