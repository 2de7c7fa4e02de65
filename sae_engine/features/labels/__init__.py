"""What a feature's automatic label is made of: examples, questions, answers and their score.

Fed by `features.index`; read by `backend.labels`, which asks a language model. The method is that
of Bills et al., *Language models can explain neurons in language models* (2023), scored by
detection as in Paulo et al., *Automatically interpreting millions of features in large language
models* (2024, arXiv 2410.13928).
"""
