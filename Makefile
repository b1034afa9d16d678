# Every target sets itself up: all it needs is Python 3.10 or newer, with venv. A second run starts at once.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install -qq --prefer-binary --disable-pip-version-check -c constraints.txt
OUT    ?= pyratok-demo
JOBS   ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/.core  ## tokenise a real clip, bring it back, write a report to look at (OUT=folder, INPUT=clip)
	$(BIN)/pyratok demo --out "$(OUT)" $(if $(INPUT),--input "$(INPUT)")

test: $(VENV)/.dev  ## all tests, slow ones too (ARGS="-m 'not slow'" for the quick ones)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

lint: $(VENV)/.dev  ## style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench  ## side-by-side timings, on an idle machine, and docs/performance.md (ARGS=--quick: do they run?)
	@set -e; for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python "$$script" $(ARGS); done
	$(BIN)/python benchmarks/report.py

clean:  ## remove the environment, caches and the demo's output
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist pyratok-demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is older than what it depends on when the environment has to be brought up to date.
$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("pyratok needs Python 3.10 or newer, found " + sys.version.split()[0] + "; run make PYTHON=python3.11, say" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing pyratok into $(VENV) (once)"
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "Installing the development tools into $(VENV) (once)"
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.bench: benchmarks/requirements.txt $(VENV)/.dev
	@echo "Installing what the benchmarks compare with into $(VENV) (once)"
	$(PIP) -r $<
	@touch $@
