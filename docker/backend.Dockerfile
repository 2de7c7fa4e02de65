# The API and the training processes it starts.
FROM python:3.11-slim

# Extra options for pip, such as the index of a smaller build of PyTorch.
ARG PIP_ARGS=""

# With it Triton, which trains on GPUs, builds its link to the driver.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY sae_engine sae_engine
COPY backend backend
# Exported pages look like those of the app.
COPY frontend/style.css frontend/style.css
COPY data/tiny_gemma2 data/tiny_gemma2
# hadolint ignore=DL3042,SC2086
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install ${PIP_ARGS} --constraint constraints.txt --editable .

RUN useradd --uid 10001 --create-home workbench && install -d -o workbench /data \
    /home/workbench/.cache /home/workbench/.cache/huggingface
USER 10001
ENV SAE_WORKBENCH_DATA_DIR=/data
VOLUME /data

EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/api/health', timeout=4)"]
CMD ["uvicorn", "backend.app:app", "--host", "0.0.0.0", "--port", "8000"]
