# Two commands on a fresh machine with Python 3.11+: `make demo` and `make test`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help install demo test test-all format lint types check clean

help:             ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: $(READY) ## make .venv and install the package with its tested dependencies

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)    ## the whole method on drawn pedestrians: which part of the pool is worth pre-training on
	$(BIN)/rayreid run experiments/demo.yaml

test: $(READY)    ## all tests but those marked slow or gpu
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-all: $(READY) ## all tests but those that need a GPU
	$(BIN)/python -m pytest -m "not gpu"

format: $(READY)  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(READY)    ## check formatting, style and which room imports which
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(READY)   ## check the types of the whole package
	$(BIN)/mypy

check: lint types test ## all that a change must pass

clean:            ## remove the environment and caches (not the outputs)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info platform/*.egg-info
