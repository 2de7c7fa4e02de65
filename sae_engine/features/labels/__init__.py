"""Automatic labels: examples, questions to a language model, and scores of its answers.

Reads `features.index`; used by `backend.labels`, which asks the language model. The method is that
of Bills et al., *Language models can explain neurons in language models* (2023), scored by
detection as in Paulo et al., *Automatically interpreting millions of features in large language
models* (2024, arXiv 2410.13928).
"""
