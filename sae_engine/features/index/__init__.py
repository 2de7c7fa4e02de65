"""The feature index: the codes of a whole corpus, sorted so that every query is a slice.

`build` (torch) writes one immutable folder per snapshot; `reader` (numpy and tokenizers) queries
it.
"""
