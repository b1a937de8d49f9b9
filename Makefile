# Two commands on a fresh machine with Python 3.11+: `make demo` and `make test`.

PYTHON ?= python3
UV     ?= $(shell command -v uv 2>/dev/null)
VENV   := .venv
NEWEST := .venv-newest
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# Both commands take the path of a virtual environment. `make UV= install` uses pip where uv exists, too.
ifeq ($(strip $(UV)),)
INSTALLER   := pip (about 4 minutes)
make_venv    = $(PYTHON) -m venv $(1)
pip_install  = $(1)/bin/python -m pip install --disable-pip-version-check
pip_upgrade  = $(pip_install) --upgrade --upgrade-strategy eager
else
INSTALLER   := uv (about 1 minute)
make_venv    = $(UV) venv --quiet --seed --allow-existing --python $(PYTHON) $(1)
pip_install  = $(UV) pip install --python $(1)/bin/python
pip_upgrade  = $(pip_install) --upgrade
endif

# Tests run in two processes of one torch thread each. More threads would only wait for one another. The tests of a file
# stay together, with its fixtures. (`--dist loadgroup` has no effect: pytest-xdist 3.8 cannot mark groups in pytest 9.2.)
# Tests that need Ray do not run beside others: Ray's workers have the lowest priority and would get little. Beside one
# another they take little more than half of the time, since each waits for its own Ray.
TEST_WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest
SPREAD := --numprocesses $(TEST_WORKERS) --dist loadfile
FAST   := -m "not ray and not slow and not gpu"
# Reading all test files takes half a minute.
WITH_RAY = $(sort $(shell grep -rl "mark\.ray" tests --include="test_*.py"))

.PHONY: help install demo test test-ray test-slow test-most test-thorough test-all test-gpu test-newest fuzz crash-points coverage format lint types hooks check clean docs

help:             ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY) ## make .venv and install the package with the dependencies of constraints.txt

# The file .ready comes last, so that an installation that failed is repeated by the next target.
$(READY): pyproject.toml constraints.txt
	@echo "Installing rayreid and its dependencies into $(VENV) with $(INSTALLER)."
	@echo "This happens once and takes about 7 GB of disk, most of it for PyTorch and CUDA."
	@rm -f $@
	$(call make_venv,$(VENV))
	$(call pip_install,$(VENV)) --constraint constraints.txt --editable '.[dev]'
	@touch $@
	@echo "Installed. The environment is $(VENV); its command is $(BIN)/rayreid."

# RAYREID_DEMO has overrides, such as "seed=1 pretrain.steps=40".
RAYREID_DEMO ?=
demo: $(READY)    ## run the whole method on drawn pedestrians (no download, no GPU)
	$(BIN)/rayreid demo $(RAYREID_DEMO)

test: $(READY)    ## run the fast tests: all except those marked ray, slow or gpu
	$(PYTEST) $(SPREAD) $(FAST)

test-ray: $(READY) ## run the tests that need Ray, except the slow ones
	$(PYTEST) $(SPREAD) -m "ray and not slow and not gpu" $(WITH_RAY)

test-slow: $(READY) ## run the slow tests, except the thorough ones
	$(PYTEST) $(SPREAD) -m "slow and not thorough and not ray and not gpu"
	$(PYTEST) $(SPREAD) -m "slow and not thorough and ray and not gpu" $(WITH_RAY)

test-thorough: $(READY) ## run the tests that show more of what others show a part of
	$(PYTEST) $(SPREAD) -m "thorough and not ray and not gpu"
	$(PYTEST) $(SPREAD) -m "thorough and ray and not gpu" $(WITH_RAY)

test-most: $(READY) ## run what test, test-ray and test-slow run, in less time
	$(PYTEST) $(SPREAD) -m "not ray and not thorough and not gpu"
	$(PYTEST) $(SPREAD) -m "ray and not thorough and not gpu" $(WITH_RAY)

test-all: test-most test-thorough ## run all tests except those that need a GPU

# The interpreter of a GPU host may lack Ray, MLflow and pydantic. Then only files with tests for a GPU are read, which
# need none of them (tests/conftest.py).
test-gpu:         ## run the tests that need a GPU, by .venv if it is there, otherwise by PYTHON
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m pytest -m gpu

test-newest:      ## run `make test` with the newest allowed dependencies, in .venv-newest
	@echo "Installing the newest allowed dependencies into $(NEWEST) with $(INSTALLER): about 7 GB of disk."
	$(call make_venv,$(NEWEST))
	$(call pip_upgrade,$(NEWEST)) --editable '.[dev]'
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(NEWEST)/bin/python -m pytest $(SPREAD) $(FAST)

FUZZ ?= 5000
fuzz: $(READY)    ## give each reader of untrusted input FUZZ random inputs (5,000; about an hour)
	RAYREID_FUZZ=$(FUZZ) $(PYTEST) $(SPREAD) tests/config/test_config_fuzz.py tests/data/datasets/test_mutations.py \
	    tests/models/test_damaged_files.py tests/test_damaged_state.py

crash-points: $(READY) ## disturb stages at each operation of the disk, in each way
	$(PYTEST) -s tests/test_crash_points.py tests/test_power_loss.py -m "not gpu"

coverage: $(READY) ## run `make test` and list the lines that it does not reach in its own process
	$(PYTEST) $(SPREAD) $(FAST) --cov --cov-report=term-missing:skip-covered

docs: $(READY)    ## build the documents as a site, into site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml --site-dir ../../site

format: $(READY)  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(READY)    ## check formatting, style, spelling and which room imports which
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/lint-imports

types: $(READY)   ## check the types of the whole package
	$(BIN)/mypy

hooks: $(READY)   ## run lint and types before every commit, by pre-commit
	$(BIN)/pre-commit install

check: lint types test test-ray ## run everything that a change must pass

clean:            ## remove the environments and caches (not the outputs)
	rm -rf $(VENV) $(NEWEST) .uv site .pytest_cache .mypy_cache .ruff_cache .coverage *.egg-info platform/*.egg-info
