"""The pages of SAE Workbench: Streamlit over the REST API.

Of the rest of the project they import only the vocabulary, `sae_engine.schema`.
"""
