# The API and the training processes it starts.
FROM python:3.11-slim

# Extra options for pip, such as the index of a smaller build of PyTorch.
ARG PIP_ARGS=""
# Those of a cluster's machines also have `ray`.
ARG EXTRAS="app,map,postgresql"

# Triton, which trains on GPUs, compiles its link to the driver with gcc. KubeRay asks with wget
# whether a node is well.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev wget \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY sae_engine sae_engine
COPY backend backend
# Exported pages use the style sheet of the app.
COPY frontend/style.css frontend/style.css
COPY data/tiny_gemma2 data/tiny_gemma2
# hadolint ignore=DL3042,SC2086
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install ${PIP_ARGS} --constraint constraints.txt --editable ".[${EXTRAS}]"

RUN useradd --uid 10001 --create-home workbench && install -d -o workbench /data \
    /home/workbench/.cache /home/workbench/.cache/huggingface
USER 10001
ENV SAE_WORKBENCH_DATA_DIR=/data \
    XDG_CACHE_HOME=/home/workbench/.cache
# As the user that reads it: numba uses machine code only from a folder that it can write. The first
# run on a different kind of processor compiles again.
RUN python -m sae_engine.compile_kernels
VOLUME /data

EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/api/health', timeout=4)"]
CMD ["uvicorn", "backend.app:app", "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "10"]
