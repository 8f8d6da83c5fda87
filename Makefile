# gm-train: `make help` lists the targets.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo bench test test-all lint slurm slurm-down

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

# Its scan is written in Triton: without the compiled code, it installs on any machine. Out of pip's cache, which would
# give the same wheel to those who want that code.
MAMBA_SSM = MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE $(BIN)/python -m pip install --quiet \
	--disable-pip-version-check --no-cache-dir --no-deps --no-build-isolation -c constraints.txt mamba-ssm

# The stamp keeps later calls quick; it is older than what it depends on whenever that changes.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip setuptools wheel -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo,test,dev]"
	$(MAMBA_SSM)
	touch $@

setup: $(VENV)/.ready ## build .venv with gm-train in it

demo: setup ## real cells to a trained, evaluated model [DATA=file.h5ad] [FRESH=1]; again: goes on
	$(BIN)/python -m gm_train.cli.demo $(if $(DATA),--data "$(DATA)") $(if $(FRESH),--fresh)

bench: setup ## quick benchmarks of model, loader and preparation, into runs/
	$(BIN)/python -m gm_train.cli bench model --quick
	$(BIN)/python -m gm_train.cli bench loader --quick
	$(BIN)/python -m gm_train.cli bench prepare --quick

slurm: setup ## start a SLURM of two nodes on this machine, in .slurm
	$(BIN)/python -m cluster.local_slurm up

slurm-down: setup ## end it
	$(BIN)/python -m cluster.local_slurm down

# Two processes of pytest, a file of tests at a time; tests/conftest.py says in which order.
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

test: setup ## the fast tests
	$(PYTEST) -m "not slow"

test-all: setup ## all tests
	$(PYTEST)

lint: setup ## ruff, mypy and the directions of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
