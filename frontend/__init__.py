"""The pages of SAE Workbench: Streamlit over the REST API, and nothing else of the project but its vocabulary."""
