"""The feature index: the codes of a whole corpus, sorted so that every question is a slice.

`build` (torch) writes one immutable folder per snapshot; `reader` (numpy and tokenizers) answers
from it.
"""
