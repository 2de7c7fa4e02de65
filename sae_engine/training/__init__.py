"""Training: one or several runs on one pass of the language model, as a generator of records.

Fed by `activations`, `sae`, `features` and `interop`; read by callers that store or show records.
"""
