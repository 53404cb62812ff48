# Each target does all it needs by itself: on a bare machine with Python 3.10+ and make, start
# with any of them. `make PYTHON=/path/to/python3.12 setup` picks another interpreter.

.DEFAULT_GOAL := help
.PHONY: help setup links demo test gpu lint format types docs clean
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.featemb-setup
PINS := $(wildcard requirements/*.txt)
WORKERS ?= 2
PYTEST_ARGS ?=
GPU_PYTHON ?=
PARTS := models datasets benchmarks
LINK = for part in $(PARTS); do ln -sfn ../$$part featemb/$$part; done
export PIP_DISABLE_PIP_VERSION_CHECK := 1

help:  ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

setup: $(STAMP)  ## create .venv with the pinned set that works together on CPU
	@$(LINK)

links:  ## development links featemb/{models,datasets,benchmarks}, for mypy and the docs
	@$(LINK)

# Torch comes first and with its dependencies: what it needs differs between its builds.
# An editable install that saw the development links would lean on them, so they go for its time.
$(STAMP): pyproject.toml $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "featemb needs Python 3.10 or newer; set PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' \
	  || { echo "$(PYTHON) cannot make virtual environments: install its venv package" >&2; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 \
	  || $(PYTHON) -m venv --clear $(VENV)
	@set -e; pins=requirements/cpu.txt; \
	  if $(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 11))'; then \
	    pins=requirements/cpu-py310.txt; fi; \
	  echo "installing $$pins into $(VENV): some minutes"; \
	  $(BIN)/python -m pip install -qq --constraint $$pins torch setuptools wheel; \
	  $(BIN)/python -m pip install -qq --no-deps --requirement $$pins
	@rm -f $(PARTS:%=featemb/%)
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup  ## train a handful of methods on the packaged data set and write runs/demo/report.html
	$(BIN)/featemb bench benchmarks/configs/demo.toml --out runs/demo
	$(BIN)/featemb report runs/demo

test: setup  ## run the test suite
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) $(PYTEST_ARGS)

gpu: $(if $(GPU_PYTHON),links,setup)  ## run the tests that need a CUDA device and write gpu.json
	PYTHONPATH=. $(or $(GPU_PYTHON),$(BIN)/python) -m featemb.benchmarks.gpu_check --out gpu.json $(PYTEST_ARGS)

lint: setup  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup  ## ruff: mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup  ## mypy --strict over the package
	$(BIN)/mypy

docs: setup  ## build the site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## remove everything that the other targets made, results in runs/ excepted
	rm -rf $(VENV) build dist site featemb.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
