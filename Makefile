# gm-train: `make help` lists the targets.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

# Of `make gpu`: the Python that has PyTorch with CUDA, a folder of wheels, and the minutes of all parts together.
GPU_PYTHON ?= python3
WHEELS ?= wheels
MINUTES ?= 8

.DEFAULT_GOAL := help
.PHONY: help setup setup-gpu demo story bench gpu gpu-wheels test test-all lint slurm slurm-down

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

# mamba-ssm's scan is written in Triton: without the compiled code, it installs on any machine. --no-cache-dir, because
# pip would later reuse the cached wheel for installations that want the compiled code.
MAMBA_SSM = MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE $(BIN)/python -m pip install --quiet \
	--disable-pip-version-check --no-cache-dir --no-deps --no-build-isolation -c constraints.txt mamba-ssm

# The stamp file .ready makes later calls quick: make installs again only if a file below is newer.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip setuptools wheel -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo,test,dev]"
	$(MAMBA_SSM)
	touch $@

setup: $(VENV)/.ready ## build .venv and install gm-train into it

# A wheel of torch with CUDA is PyPI's default on Linux; TORCH_INDEX names another index, for another CUDA.
HAS_CUDA = import sys, torch; torch.version.cuda or sys.exit("torch " + torch.__version__ + " has no CUDA: remove \
	$(VENV) and choose an index with TORCH_INDEX=https://download.pytorch.org/whl/cu128, for example")

setup-gpu: setup ## the same, and check that it can train on this machine's GPU; needs gcc, but no nvcc [TORCH_INDEX=URL]
	@$(BIN)/python -c '$(HAS_CUDA)'
	$(BIN)/python -m gm_train.cli doctor

demo: setup ## train and evaluate a model on real cells [DATA=file.h5ad] [FRESH=1]; run again to continue
	$(BIN)/python -m gm_train.cli.stories.demo $(if $(DATA),--data "$(DATA)") $(if $(FRESH),--fresh)

story: setup ## simulate an atlas of 50,000 cells, train on it, evaluate and annotate [FRESH=1]
	$(BIN)/python -m gm_train.cli.stories.story $(if $(FRESH),--fresh)

bench: setup ## run quick benchmarks of model, loader and preparation; results in runs/
	$(BIN)/python -m gm_train.cli bench model --quick
	$(BIN)/python -m gm_train.cli bench loader --quick
	$(BIN)/python -m gm_train.cli bench prepare --quick

# Needs no internet and no `make setup`: what GPU_PYTHON lacks comes from WHEELS.
gpu: ## prove and measure everything on this machine's GPU, offline, in under nine minutes [WHEELS=folder] [GPU_PYTHON=python3] [MINUTES=8]
	$(GPU_PYTHON) -m gm_train.bench.offline.environment --wheels "$(WHEELS)" --into .venv-gpu
	.venv-gpu/bin/python -m gm_train.cli bench gpu --minutes $(MINUTES)

gpu-wheels: setup ## on a machine with internet, fill WHEELS for `make gpu` [GPU_PYTHON_VERSION=3.12] [HAS=packages.txt]
	$(BIN)/python -m gm_train.bench.offline.wheels --into "$(WHEELS)" $(if $(HAS),--has "$(HAS)") \
		$(if $(GPU_PYTHON_VERSION),--python-version $(GPU_PYTHON_VERSION))

slurm: setup ## start a two-node SLURM on this machine, in .slurm
	$(BIN)/python -m cluster.local_slurm up

slurm-down: setup ## stop the SLURM that `make slurm` started
	$(BIN)/python -m cluster.local_slurm down

# Three pytest processes, since tests often wait; each runs one test file at a time, in the order of tests/conftest.py.
# -rs names the tests that are skipped and what they need, such as a browser (the package chromium) for tests of pages.
PYTEST = $(BIN)/python -m pytest -n 3 --no-loadscope-reorder -rs

test: setup ## run the fast tests
	$(PYTEST) -m "not slow"

test-all: setup ## run all tests
	$(PYTEST)

lint: setup ## run ruff and mypy, and check the directions of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
