# Two commands matter: `make demo` and `make test`. Both set themselves up in .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help setup demo test test-full lint clean

help:
	@echo "make demo       set up, run a real IsoFLOP sweep on the CPU, fit it, show the figure"
	@echo "make test       set up, run the fast tests"
	@echo "make test-full  the slow tests too"
	@echo "make lint       ruff and mypy"
	@echo "make setup      the environment only (.venv, from pyproject.toml with constraints.txt)"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "llmtrain needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev,energy,slurm]'
	@touch $(STAMP)

demo: setup
	$(BIN)/python scripts/train.py sweep=demo
	$(BIN)/python scripts/analyze.py runs=runs/demo

test: setup
	$(BIN)/pytest -n 2 --dist loadgroup

test-full: setup
	$(BIN)/pytest -n 2 --dist loadgroup -m "not gpu"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv runs data
