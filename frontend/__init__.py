"""The pages of SAE Workbench: Streamlit over the REST API.

Of the project they know the vocabulary, `sae_engine.schema`, and nothing else.
"""
