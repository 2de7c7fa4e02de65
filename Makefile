# `make` alone lists the commands. Each works on a fresh machine: it creates .venv first.
.DEFAULT_GOAL := help
.PHONY: help run test check coverage chaos

BIN := .venv/bin
# Arguments for the command, as in: make run ARGS="--port 9000", make test ARGS="tests/sae_engine -x".
ARGS ?=
# Number of processes that run tests.
WORKERS ?= 2
# A worker runs whole files, in the order of tests/conftest.py: the longest first.
BY_FILE = --dist loadfile --no-loadscope-reorder
# More options for pip, such as the index of another build of PyTorch.
PIP_ARGS ?=
INSTALL = $(BIN)/python -m pip install $(PIP_ARGS) --constraint constraints.txt --editable
# Compiles the kernels now; otherwise the first training step takes ten seconds longer.
COMPILE = $(BIN)/python -m sae_engine.compile_kernels

help:  ## list these commands
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null \
	  || sed -nE 's/^([a-z]+):.*## (.*)/make \1   \2/p' $(MAKEFILE_LIST)

run: .venv/installed  ## install what is missing and start the program; ARGS="--port 9000"
	@$(BIN)/sae-workbench up $(ARGS)

test: .venv/installed-dev  ## install what is missing and run the whole test suite; ARGS="tests/sae_engine -x"
	@$(BIN)/python -m pytest -n $(WORKERS) $(BY_FILE) $(ARGS)

coverage: .venv/installed-dev  ## run the test suite and list the lines it does not reach
	@$(BIN)/python -m pytest -n $(WORKERS) $(BY_FILE) --cov --cov-report=term-missing:skip-covered $(ARGS)

chaos: .venv/installed-ray  ## kill jobs, servers and machines, 50 times (about an hour); make test does so 3 times
	@CHAOS_ROUNDS=50 $(BIN)/python -m pytest -s tests/chaos $(ARGS)

check: .venv/installed-dev  ## check style, formatting, types and the rules for imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports

.venv/installed: pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(INSTALL) ".[app,map,postgresql]"
	@$(COMPILE)
	@touch $@

.venv/installed-dev: pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(INSTALL) ".[dev]"
	@$(COMPILE)
	@touch .venv/installed $@

.venv/installed-ray: .venv/installed-dev
	$(INSTALL) ".[dev,ray]"
	@touch .venv/installed .venv/installed-dev $@

# The first Python that runs and is new enough; a shim of a version manager may exist and still fail.
$(BIN)/python:
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
	  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  echo "Creating .venv with $$($$python --version)"; \
	  $$python -m venv .venv || { rm -rf .venv; echo "$$python cannot create a virtual environment; on Debian and Ubuntu, install python3-venv." >&2; exit 1; }; \
	  exit 0; \
	done; \
	echo "SAE Workbench needs Python 3.11 or newer and found none; install it, or give its path: make run PYTHON=/path/to/python3" >&2; \
	exit 1
