# Every target does its own set-up; it needs Python 3.11 or newer, pip, make and, to fetch packages, an index or a mirror.
#   make demo PYTHON=python3.12

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

DEV    := $(VENV)/.installed-dev
BENCH  := $(VENV)/.installed-bench
OTHERS := $(VENV)/.installed-foreign
INPUTS := pyproject.toml constraints.txt
FAULTS := $(addprefix tests/e2e/test_,faults.py partitions.py flagship.py lost_founder.py)
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Where no bytecode is written, every `kos` command and every daemon compiles the whole package again: half of its start.
unexport PYTHONDONTWRITEBYTECODE

.NOTPARALLEL:
.PHONY: help demo test lint check foreign docs bench sim mutants faults clean system-packages

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(DEV)  ## run the first notebook on a local cluster of 3 nodes, beside a serial run
	@$(BIN)/python -m kos_cluster.services.demo

test: system-packages lint check  ## every check and every test, and the demo as one of them

lint: $(DEV)  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Half of the suite's time is waiting, so four files of tests run at once, those of tests/e2e first.
check: $(DEV)  ## the test suite alone
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

# CPython's are in the `test` package of any Python on this machine; cases are read from $$KOS_CASES or ../shared/cases.
# The peers of `kos bench` are tried, too, where `make bench` has installed them.
foreign: $(OTHERS)  ## the suites that others wrote, whole: CPython's, joblib's, Dask's, PyTorch's DDP, recorded cases
	$(BIN)/python -m pytest tests/foreign -m ""

docs: $(DEV)  ## write the parts of the documentation that are made from the code
	$(BIN)/python -m docs.tables

bench: $(BENCH)  ## measure KOS and its peers on this machine, and write the figures into the documentation
	$(BIN)/kos bench --json docs/figures.json --picture docs/figures.svg
	$(BIN)/kos bench memory --json docs/figures-memory.json
	$(BIN)/kos bench queued --json docs/figures-queued.json
	$(BIN)/kos bench engines --json docs/figures-engines.json
	$(BIN)/python -m docs.tables

sim: $(DEV)  ## 10,000 seeds of the simulator, each 20 virtual seconds of faults or more, on two cores; 5,000 of gangs; placing
	$(BIN)/kos sim --seed 0 --seeds 10000 --minutes 0.334 --processes 2
	$(BIN)/python -m tests.sim.test_gangs 5000
	$(BIN)/kos sim --workload --tasks 20000

mutants: $(DEV)  ## plant known defects in the machines, and show after how many seeds the simulator catches each
	$(BIN)/kos sim --mutants --processes 2

faults: $(DEV)  ## the tests of real daemons under real faults, ten times over
	@for round in 1 2 3 4 5 6 7 8 9 10; do \
	  echo "round $$round"; $(BIN)/python -m pytest -q $(FAULTS) || exit 1; done

clean:  ## remove the virtual environment and everything built
	rm -rf $(VENV) build dist artefacts *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Made again only when what it was made from changes.
$(DEV): $(INPUTS) | $(VENV)/bin/python
	$(PIP) setuptools
	$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

$(BENCH): $(INPUTS) | $(DEV)
	$(PIP) --no-build-isolation --editable '.[dev,bench]'
	@touch $@

$(OTHERS): $(INPUTS) | $(DEV)
	$(PIP) --no-build-isolation --editable '.[dev,foreign]'
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "KOS needs Python 3.11 or newer; name one, for example: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The tests that put two hosts into network namespaces need `ip`, those of the notebook's monitor a Chromium; they are
# skipped, and listed, where these are missing.
system-packages:
	@wanted=""; \
	command -v ip >/dev/null || wanted="$$wanted iproute2"; \
	command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	  || wanted="$$wanted chromium"; \
	if [ -z "$$wanted" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get -qq update; \
	  for package in $$wanted; do \
	    DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $$package >/dev/null \
	      || echo "$$package could not be installed: the tests that need it will be skipped." >&2; \
	  done; \
	else echo "Only root can install$$wanted: the tests that need them will be skipped." >&2; fi
