# Everything is set up in .venv: nothing system-wide, no root. The stamps make a second call start at once.
PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
install = PYTHONWARNINGS=ignore $(1)/bin/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt
PIP := $(call install,$(VENV))
# onnxruntime-training shares its import name with onnxruntime, so its tests have an environment of their own.
ORT_TRAINING := $(VENV)/ort-training
MLFLOW := $(VENV)/mlflow
SOURCES := edge_runtime coordinator compression export devices tests docs/site .ci

# A device trains on one core, so the tests do too (and parallel tests would fight over the cores).
test: export OMP_NUM_THREADS = 1
test: export OPENBLAS_NUM_THREADS = 1
test: export MKL_NUM_THREADS = 1

.DEFAULT_GOAL := help
.PHONY: help demo setup test fuzz chaos mlflow boards aarch64 docs format lint types wheel deb bundle try-install \
        check-wheels clean
.DELETE_ON_ERROR:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{printf "%-17s %s\n", $$1, $$2}'

# `exec` leaves no shell in between: Ctrl-C reaches the program itself, and make waits until it has cleaned up.
demo: $(VENV)/.demo-stamp ## set up and run the demo: a broker, a coordinator and 20 agents (ARGS="--rounds 5")
	@exec $(BIN)/edge-coordinator demo $(ARGS)

setup: $(VENV)/.demo-stamp ## set up .venv with both programs, and no more
	@echo 'ready: $(BIN)/edge-coordinator and $(BIN)/edge-agent'

test: $(VENV)/.test-stamp $(ORT_TRAINING)/.stamp ## set up and run all tests (ARGS="-k fedspa" for some)
	@exec $(BIN)/python -m pytest -n auto $(ARGS)
	@$(if $(strip $(ARGS)),:,test ! -x $(ORT_TRAINING)/bin/python || \
	  exec $(ORT_TRAINING)/bin/python -m pytest tests/backends/test_ort_training.py)

fuzz: $(VENV)/.test-stamp ## throw a million mutated payloads at every decoder (ARGS="--number 50000 --seed 1")
	@OMP_NUM_THREADS=1 exec $(BIN)/python -m tests.fuzz $(ARGS)

chaos: $(VENV)/.test-stamp ## fill in the scorecard of reliability and security (ARGS="R2 R7 --part 0.1 --json")
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 exec $(BIN)/python -m tests.chaos $(ARGS)

mlflow: $(MLFLOW)/.stamp ## set up and run the test of MLflow's writer (100 MB)
	@exec $(MLFLOW)/bin/python -m pytest tests/coordinator/test_tracking.py $(ARGS)

boards: $(VENV)/.test-stamp ## make docs/boards.md anew from the files in docs/boards
	@exec $(BIN)/python -m edge_runtime.devices.boards docs/boards docs/boards.md

aarch64: $(VENV)/.test-stamp ## see whether an emulated aarch64 reads the same from what is coded here
	@PYTHON=$(BIN)/python exec .ci/aarch64.sh

docs: $(VENV)/.docs-stamp ## build the documentation as a site that needs no network, in build/docs
	@NO_MKDOCS_2_WARNING=1 exec $(BIN)/python -m mkdocs build --quiet --strict --config-file docs/site/mkdocs.yml $(ARGS)

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

# Python of the devices: 3.11 is that of Debian 12 and Raspberry Pi OS 12, 3.13 that of Debian 13.
PYTHONS ?= 3.11
MACHINES ?= x86_64 aarch64
PROGRAMS ?= edge-agent edge-coordinator

deb: $(VENV)/.test-stamp ## build Debian packages into dist/ (MACHINES=aarch64 PYTHONS="3.11 3.13" PROGRAMS=edge-agent)
	@for python in $(PYTHONS); do for machine in $(MACHINES); do for program in $(PROGRAMS); do \
	  PYTHON=$(BIN)/python devices/packaging/deb.sh $$program $$machine $$python dist || exit 1; done; done; done

bundle: $(VENV)/.test-stamp ## build archives of wheels for devices without a network (MACHINES=aarch64 PYTHONS=3.13)
	@for python in $(PYTHONS); do for machine in $(MACHINES); do \
	  PYTHON=$(BIN)/python devices/packaging/bundle.sh $$machine $$python onnx dist || exit 1; done; done

try-install: $(VENV)/.test-stamp ## install, run and purge in clean systems of debootstrap's making (needs root; minutes)
	@PYTHON=$(BIN)/python exec devices/packaging/try.sh $(ARGS)

check-wheels: $(VENV)/.demo-stamp ## see whether the device install has wheels on x86-64 and aarch64, Python 3.11 to 3.13
	@$(BIN)/python .ci/check_wheels.py

clean: ## remove what was made here, .venv included; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.demo-stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'Python 3.11 or newer is needed, and "$(PYTHON)" is not: name one with  make $(MAKECMDGOALS) PYTHON=python3.12' >&2; \
	  exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { $(call create_venv,$(PYTHON),$(VENV)); }
	@echo 'Installing the pinned dependencies into $(VENV) (once; about a minute) ...'
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation --editable '.[coordinator,dashboard,broker,onnx]'
	@$(PIP) --no-deps seglearn
	@touch $@

# torch goes first and by its exact version: left to a range, a resolver may choose a GPU build of several gigabytes.
$(VENV)/.test-stamp: $(VENV)/.demo-stamp
	@echo 'Installing the test tools and torch into $(VENV) (once; a few minutes) ...'
	@$(PIP) "$$(grep '^torch==' constraints.txt)"
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

$(VENV)/.docs-stamp: $(VENV)/.demo-stamp
	@echo 'Installing what makes the documentation into $(VENV) (once; half a minute) ...'
	@$(PIP) --no-build-isolation --editable '.[docs]'
	@touch $@

$(ORT_TRAINING)/.stamp: $(VENV)/.test-stamp
	@mkdir -p $(ORT_TRAINING)
	@if $(BIN)/python -c 'import platform as p, sys; \
	    sys.exit(sys.platform != "linux" or p.machine() != "x86_64" or sys.version_info >= (3, 13))'; then \
	  echo 'Installing onnxruntime-training into $(ORT_TRAINING) (once; half a minute) ...'; \
	  { $(call create_venv,$(BIN)/python,$(ORT_TRAINING)); } && \
	  $(call install,$(ORT_TRAINING)) setuptools && \
	  $(call install,$(ORT_TRAINING)) --no-build-isolation --editable '.[ort-training]' pytest; \
	else \
	  echo 'onnxruntime-training has no wheels for this machine or Python: the tests that need it are skipped'; \
	fi
	@touch $@

$(MLFLOW)/.stamp: $(VENV)/.demo-stamp
	@mkdir -p $(MLFLOW)
	@echo 'Installing MLflow into $(MLFLOW) (once; a minute) ...'
	@$(call create_venv,$(BIN)/python,$(MLFLOW))
	@$(call install,$(MLFLOW)) setuptools
	@$(call install,$(MLFLOW)) --no-build-isolation --editable '.[mlflow]' pytest
	@touch $@

# Debian ships Python without ensurepip; its python3-pip package can stand in for it.
define create_venv
if $(1) -c 'import ensurepip' 2>/dev/null; then \
  $(1) -m venv $(2); \
elif $(1) -m pip --python $(1) --version >/dev/null 2>&1; then \
  $(1) -m venv --without-pip $(2) && \
  $(1) -m pip --python $(2)/bin/python --disable-pip-version-check --quiet install pip; \
else \
  echo 'This Python cannot make virtual environments. On Debian or Ubuntu:  sudo apt install python3-venv' >&2; \
  exit 1; \
fi
endef
