# Everything is set up in .venv: nothing system-wide, no root. The stamps make a second call start at once.
PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt
SOURCES := edge_runtime coordinator compression export devices tests .ci

# A device trains on one core, so the tests do too (and parallel tests would fight over the cores).
test: export OMP_NUM_THREADS = 1
test: export OPENBLAS_NUM_THREADS = 1
test: export MKL_NUM_THREADS = 1

.DEFAULT_GOAL := help
.PHONY: help demo test format lint types wheel check-wheels clean
.DELETE_ON_ERROR:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{printf "%-17s %s\n", $$1, $$2}'

# `exec` leaves no shell in between: Ctrl-C reaches the program itself, and make waits until it has cleaned up.
demo: $(VENV)/.demo-stamp ## set up and run the demo: a broker, a coordinator and 20 agents (ARGS="--rounds 5")
	@exec $(BIN)/edge-coordinator demo $(ARGS)

test: $(VENV)/.test-stamp ## set up and run all tests (ARGS="-k fedspa" for some)
	@exec $(BIN)/python -m pytest -n auto $(ARGS)

format: $(VENV)/.test-stamp ## format the code
	@$(BIN)/ruff format $(SOURCES)
	@$(BIN)/ruff check --fix --select I $(SOURCES)

lint: $(VENV)/.test-stamp ## check format and lint
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/ruff check $(SOURCES)

types: $(VENV)/.test-stamp ## check the types
	@$(BIN)/mypy

wheel: $(VENV)/.test-stamp ## build sdist and wheel into dist/
	@$(BIN)/python -m build --no-isolation --outdir dist .

check-wheels: $(VENV)/.demo-stamp ## see whether the device install has wheels on x86-64 and aarch64, Python 3.11 to 3.13
	@$(BIN)/python .ci/check_wheels.py

clean: ## remove what was made here, .venv included; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.demo-stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'Python 3.11 or newer is needed, and "$(PYTHON)" is not: name one with  make $(MAKECMDGOALS) PYTHON=python3.12' >&2; \
	  exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { $(create_venv); }
	@echo 'Installing the pinned dependencies into $(VENV) (once; about a minute) ...'
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation --editable '.[coordinator,broker,onnx]'
	@$(PIP) --no-deps seglearn
	@touch $@

# torch goes first and by its exact version: left to a range, a resolver may choose a GPU build of several gigabytes.
$(VENV)/.test-stamp: $(VENV)/.demo-stamp
	@echo 'Installing the test tools and torch into $(VENV) (once; a few minutes) ...'
	@$(PIP) "$$(grep '^torch==' constraints.txt)"
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

# Debian ships Python without ensurepip; its python3-pip package can stand in for it.
define create_venv
if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
  $(PYTHON) -m venv $(VENV); \
elif $(PYTHON) -m pip --python $(PYTHON) --version >/dev/null 2>&1; then \
  $(PYTHON) -m venv --without-pip $(VENV) && \
  $(PYTHON) -m pip --python $(BIN)/python --disable-pip-version-check --quiet install pip; \
else \
  echo 'This Python cannot make virtual environments. On Debian or Ubuntu:  sudo apt install python3-venv' >&2; \
  exit 1; \
fi
endef
