# Two commands matter: `make demo` and `make test`. Both set themselves up in .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
STAMP_NO_TORCH := .venv-notorch/.installed
STAMP_TOOLS := .venv-tools/.installed

.PHONY: help setup demo pictures test test-full test-no-torch bench lint lock audit clean

help:
	@echo "make demo       set up, run a real IsoFLOP sweep on the CPU, fit it, show the figure"
	@echo "make pictures   the README's pictures, into docs/pictures"
	@echo "make test       set up, run the fast tests"
	@echo "make test-full  the slow tests too"
	@echo "make test-no-torch  the tests of spec and scaling where torch is not installed"
	@echo "make bench      the benchmarks of this machine, under ten minutes"
	@echo "make lint       ruff and mypy"
	@echo "make lock       write requirements.lock anew: every package but torch, with its hashes"
	@echo "make audit      look requirements.lock up among the published advisories"
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

pictures: setup
	$(BIN)/python scripts/pictures.py

test: setup
	$(BIN)/pytest -n 2 --dist loadgroup

test-full: setup
	$(BIN)/pytest -n 2 --dist loadgroup -m "not gpu"

# The rooms that must work on a laptop without torch, in an environment that has none.
test-no-torch: $(STAMP_NO_TORCH)
	.venv-notorch/bin/pytest tests/spec tests/scaling -m "not slow and not gpu"

$(STAMP_NO_TORCH): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-notorch
	.venv-notorch/bin/pip install --quiet --disable-pip-version-check -c constraints.txt \
		numpy scipy matplotlib hydra-core rich pytest pytest-timeout hypothesis
	.venv-notorch/bin/pip install --quiet --disable-pip-version-check --no-deps -e .
	! .venv-notorch/bin/python -c 'import torch' 2>/dev/null
	@touch $(STAMP_NO_TORCH)

# Under ten minutes on two cores; for figures to compare, leave the machine to it alone.
bench: setup
	mkdir -p runs/bench
	for part in step run pool cost analysis sweep; do \
		$(BIN)/python scripts/bench.py what=$$part repeats=1 out=runs/bench/$$part.json || exit; \
	done

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Torch and its CUDA libraries differ by where it is installed from, so they have no one hash.
lock: $(STAMP_TOOLS)
	.venv-tools/bin/uv --no-config pip compile pyproject.toml --extra test --extra dev --extra energy \
		--extra slurm --constraint constraints.txt --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --no-header --quiet --output-file requirements.lock \
		$(foreach name,$(BUILDS),--no-emit-package $(name))

audit: $(STAMP_TOOLS)
	.venv-tools/bin/pip-audit --requirement requirements.lock --require-hashes --disable-pip --strict

BUILDS := torch triton cuda-bindings cuda-pathfinder cuda-toolkit $(addprefix nvidia-,\
	cublas cuda-cupti cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse \
	cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx)

$(STAMP_TOOLS): Makefile
	$(PYTHON) -m venv .venv-tools
	.venv-tools/bin/pip install --quiet --disable-pip-version-check 'uv>=0.9' 'pip-audit>=2.10'
	@touch $(STAMP_TOOLS)

clean:
	rm -rf .venv .venv-notorch .venv-tools .pytest_cache .mypy_cache .ruff_cache
