# `make demo` and `make test` need python3 >= 3.11 and nothing else; they install into .venv once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test check lint types imports bench mutants clean

help:
	@echo "make demo     sample data, strategies side by side, a sweep and its leaderboard"
	@echo "make test     the test suite"
	@echo "make check    lint, format, types, layers and the test suite"
	@echo "make bench    measure speed and memory into docs/performance.md"
	@echo "make mutants  show that the suite catches each known way to break the kernel"
	@echo "make clean    remove .venv and caches (data/ and models/ stay)"

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "yieldlab needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[all,dev]" -c constraints.txt
	@touch $@

install: $(INSTALLED)

demo: $(INSTALLED)
	@$(BIN)/yieldlab demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

imports: $(INSTALLED)
	$(BIN)/lint-imports

check: lint types imports test

bench: $(INSTALLED)
	$(BIN)/python tests/benchmarks/bench.py --out docs/performance.md

mutants: $(INSTALLED)
	$(BIN)/python tests/mutants/run.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
