# Every target sets up what it needs: on a fresh machine `make demo` or `make test` finds
# a Python, fills .venv and runs; a second run installs nothing until pyproject.toml or
# constraints.txt has changed.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint versions benchmarks clean

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

# The first interpreter that is new enough and can make virtual environments.
SUITABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	"$$python" -c '$(SUITABLE)' >/dev/null 2>&1 && command -v "$$python" && break; done)

help:  ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 20

demo: $(VENV)/local.installed  ## train the bundled policy and watch its reward rise
	$(BIN)/tracetune demo

# The models in the tests are tiny: one thread each is quicker than the two cores' hand-overs. So each
# core has tests of its own, whole files, as their fixtures are made once a file. A process of tests that
# crashes fails the run by its test's name: replaced, it would be waited for without end (pytest-xdist#1378).
test: lint  ## lint, then run every test
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
		--numprocesses auto --maxprocesses 4 --max-worker-restart 0 --dist loadfile --durations=10

lint: $(VENV)/dev.installed  ## ruff, mypy and the import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy -p tracetune
	$(BIN)/mypy typing_tests
	$(BIN)/lint-imports

versions: $(VENV)/dev.installed  ## try the oldest and the newest version of each dependency (takes an hour or more)
	$(BIN)/python tests/versions.py

benchmarks: $(VENV)/dev.installed  ## print the table of every benchmark (wants a quiet machine)
	@for script in benchmarks/*.py; do echo "# $$script"; HF_HUB_OFFLINE=1 $(BIN)/python "$$script"; done

clean:  ## remove .venv and what tools leave behind
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@"$(PYTHON)" -c '$(SUITABLE)' 2>/dev/null || { \
		echo "error: no Python 3.11 or newer with venv was found; install one, or name it with PYTHON=/path/to/python3" >&2; \
		exit 1; }
	"$(PYTHON)" -m venv $(VENV)

$(VENV)/local.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[local]'
	touch $@

$(VENV)/dev.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	touch $(VENV)/local.installed $@
