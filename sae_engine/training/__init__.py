"""Training: one or several runs on one pass of the language model, as a generator of records.

Uses `activations`, `sae`, `features` and `interop`; used by callers that store or show records.
"""
