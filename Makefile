# Two commands on a fresh machine with Python 3.11+: `make demo` and `make test`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# Tests run in two processes of one torch thread each. More threads would only wait for one another.
TEST_WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest
SPREAD := --numprocesses $(TEST_WORKERS) --dist loadgroup

.PHONY: help install demo test test-ray test-slow test-all format lint types check clean

help:             ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: $(READY) ## make .venv and install the package with its tested dependencies

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)    ## the whole method on drawn pedestrians: which part of the pool is worth pre-training on
	$(BIN)/rayreid run experiments/demo.yaml

test: $(READY)    ## the fast tests: all but those marked ray, slow or gpu
	$(PYTEST) $(SPREAD) -m "not ray and not slow and not gpu"

test-ray: $(READY) ## the tests that need Ray, but for the slow ones
	$(PYTEST) $(SPREAD) -m "ray and not slow and not gpu"

test-slow: $(READY) ## the slow tests
	$(PYTEST) $(SPREAD) -m "slow and not gpu"

test-all: test test-ray test-slow ## all tests but those that need a GPU

format: $(READY)  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(READY)    ## check formatting, style and which room imports which
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(READY)   ## check types on the domain and ground floors
	$(BIN)/mypy

check: lint types test test-ray ## all that a change must pass

clean:            ## remove the environment and caches (not the outputs)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info platform/*.egg-info
