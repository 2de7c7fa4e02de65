"""What a feature's automatic label is made of: examples, questions, answers and their score.

Nothing here talks to anyone; `backend.labels.jobs` asks a language model. The way goes back to Bills
et al., *Language models can explain neurons in language models* (2023): one model explains, and the
explanation is judged by what it predicts. It is judged by detection, as in Paulo et al.,
*Automatically interpreting millions of features in large language models* (2024, arXiv 2410.13928).
"""
