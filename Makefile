# Two commands to know: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin
KILLS ?= 20

.PHONY: help setup demo test test-slow test-kill test-parallel test-transformers check lint format types imports clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup:  ## create .venv with the library and the tools (nothing to do if it is up to date)
	@$(PYTHON) dev.py

demo: setup  ## train, evaluate and report a small model on Python's own documentation (5 minutes, offline)
	@$(BIN)/sortyard demo

test: setup  ## the tests, without the slow ones
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: setup  ## the slow tests
	$(BIN)/python -m pytest -m slow

test-kill: setup  ## kill a training run KILLS times at random moments; its weights must not differ by a bit
	SORTYARD_KILLS=$(KILLS) $(BIN)/python -m pytest -s -m slow tests/faults/test_kill.py

test-parallel: setup  ## all layouts of up to 8 processes, and 8 x 4 and 8 x 4 x 2, beside one process (hours on 2 cores)
	$(BIN)/python benchmarks/layouts.py

test-transformers: setup  ## transformers' own model tests on our models; fetches its source distribution (4 minutes)
	$(BIN)/python tests/transformers_suite/run.py -- -n 2

check: lint types imports  ## format, lint, types and the import contract

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

format: setup  ## format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment and every cache; runs stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
