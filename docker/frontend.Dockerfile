# The pages. Of the engine, the image holds only the vocabulary, and no PyTorch.
FROM python:3.11-slim

WORKDIR /app
COPY pyproject.toml constraints.txt ./
# pip supports dependency groups since 25.1.
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install pip==26.3 && \
    python -m pip install --constraint constraints.txt --group frontend
COPY sae_engine/__init__.py sae_engine/__init__.py
COPY sae_engine/schema sae_engine/schema
COPY frontend frontend
COPY docs/glossary.md docs/glossary.md

RUN useradd --uid 10001 --create-home workbench
USER 10001
ENV PYTHONPATH=/app \
    STREAMLIT_BROWSER_GATHER_USAGE_STATS=false \
    STREAMLIT_SERVER_HEADLESS=true \
    STREAMLIT_SERVER_ADDRESS=0.0.0.0 \
    STREAMLIT_SERVER_PORT=8501

EXPOSE 8501
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8501/_stcore/health', timeout=4)"]
CMD ["streamlit", "run", "frontend/app.py"]
