# Two commands on a fresh machine with Python 3.11+: `make demo` and `make test`.

PYTHON ?= python3
UV     ?= $(shell command -v uv 2>/dev/null)
VENV   := .venv
NEWEST := .venv-newest
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# Both commands take the path of a virtual environment. `make UV= install` uses pip where uv exists, too.
ifeq ($(strip $(UV)),)
INSTALLER   := pip
make_venv    = $(PYTHON) -m venv $(1)
pip_install  = $(1)/bin/python -m pip install --disable-pip-version-check
pip_upgrade  = $(pip_install) --upgrade --upgrade-strategy eager
else
INSTALLER   := uv
make_venv    = $(UV) venv --quiet --seed --allow-existing --python $(PYTHON) $(1)
pip_install  = $(UV) pip install --python $(1)/bin/python
pip_upgrade  = $(pip_install) --upgrade
endif

.PHONY: help install demo test test-all format lint types check clean

help:             ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: $(READY) ## make .venv and install the package with its tested dependencies

# The file .ready comes last, so that an installation that failed is repeated by the next target.
$(READY): pyproject.toml constraints.txt
	@echo "Installing rayreid and its dependencies into $(VENV) with $(INSTALLER)."
	@echo "This happens once. It takes about 3 minutes and 7 GB of disk, most of it for PyTorch and CUDA."
	@rm -f $@
	$(call make_venv,$(VENV))
	$(call pip_install,$(VENV)) --constraint constraints.txt --editable '.[dev]'
	@touch $@
	@echo "Installed. The environment is $(VENV); its command is $(BIN)/rayreid."

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

types: $(READY)   ## check types on the domain and ground floors
	$(BIN)/mypy

check: lint types test ## all that a change must pass

clean:            ## remove the environment and caches (not the outputs)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info platform/*.egg-info
