# Everything runs in virtual environments that are made on first use, from the pins in .ci/:
#   .venv         the newest Python that is there and the newest libraries
#   .venv-oldest  Python 3.10 and the oldest libraries that pyproject.toml allows
PYTHONS := 3.13 3.12 3.11 3.10
ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell .ci/python $(PYTHONS))
endif
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV := .venv
BIN := $(VENV)/bin
PINS := .ci/constraints-$(VERSION).txt
STAMP := $(VENV)/.installed-$(VERSION)

OLDEST := .venv-oldest
OLDEST_PYTHON ?= $(shell .ci/python 3.10)
OLDEST_PINS := .ci/constraints-oldest.txt
OLDEST_STAMP := $(OLDEST)/.installed

# Of make test-all and make test-oldest: which tests, as pytest's arguments.
TESTS ?= tests
DEMO ?= demo
BENCH ?= --gb 4.5
SCALE ?=
PEERS ?=
FUZZ ?= --minutes 60
FAULTS ?= --folder /dev/shm
# What is imported is compiled then: to compile all of torch and transformers takes as long as to
# unpack it.
INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile
unexport PYTHONDONTWRITEBYTECODE

# One more than there are processors: many tests wait, for their processes or for time to pass. But
# each takes memory, and of many processors this process may have few.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN); \
	if [ "$$n" -lt 16 ]; then expr "$$n" + 1; else echo 16; fi)
PYTEST = -m pytest --numprocesses $(WORKERS) --dist worksteal

.PHONY: install install-oldest demo test test-all test-fast test-oldest fuzz faults check format \
	bench bench-scale bench-peers docs build version pins clean

install: $(STAMP)

install-oldest: $(OLDEST_STAMP)

# Made anew where it is of another Python.
$(STAMP): pyproject.toml $(PINS)
	@echo "Installing into $(VENV): about 5 GB, most of it torch, which takes minutes ..."
	test -e $@ || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python $(INSTALL) --constraint $(PINS) --editable ".[dev]"
	touch $@

$(OLDEST_STAMP): pyproject.toml $(OLDEST_PINS)
	test -x $(OLDEST)/bin/python || $(OLDEST_PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python $(INSTALL) --constraint $(OLDEST_PINS) --editable ".[test]"
	touch $@

demo: $(STAMP)
	$(BIN)/python -m tests.demo $(DEMO)

test: $(STAMP)
	$(BIN)/python $(PYTEST) -m "not sweep"

# With every class of transformers, for some ten minutes on two cores; it ends with what holds.
test-all: $(STAMP)
	$(BIN)/python $(PYTEST) $(TESTS)

# Under a minute on two cores: without the tests that need a real trainer, for what those save takes
# minutes to make, and without the slow ones. It ends with those that should be marked so.
test-fast: $(STAMP)
	$(BIN)/python $(PYTEST) -m "not real and not slow" --hypothesis-profile fast \
		--durations 5 --durations-min 0.5

# What fails, or is killed, at every system call of a merge, a to-mcore and an upload; 100 real runs
# killed at any moment; 300 rounds of 8 starts at once; disks that fill up. Half an hour on two
# cores; it ends with how many faults there were, and what came of them. FAULTS: see
# tests/faults/inject.py. A share of it is in make test.
faults: $(STAMP)
	CKPT_KILLS=100 CKPT_RACES=300 $(BIN)/python -m pytest tests/faults tests/plans/test_races.py
	$(BIN)/python -m tests.faults.inject $(FAULTS)

test-oldest: $(OLDEST_STAMP)
	$(OLDEST)/bin/python $(PYTEST) $(TESTS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python -m tests.bench $(BENCH)

# How long planning takes on models of 30 to 671 billion parameters, without their numbers, and on
# checkpoints of megatron-core with 93,000 tensors; SCALE: which, see tests/bench/planning.py.
bench-scale: $(STAMP)
	$(BIN)/python -m tests.bench.planning $(SCALE)

# The tool beside other people's, on the same checkpoints: torch's, accelerate's, transformers' and
# verl's. The last has an environment of its own, .venv-verl, which needs the network once; without
# it the table says so. A quarter of an hour; PEERS: see tests/bench/side_by_side.py.
bench-peers: $(STAMP)
	$(BIN)/python -m tests.bench.side_by_side $(PEERS)

# The console blocks of all pages and the picture of the README, as the program is now.
docs: $(STAMP)
	REWRITE_DOCS=1 $(BIN)/python $(PYTEST) tests/documents

# Crafted input for every parser; findings go to fuzz-findings/.
fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz $(FUZZ)

# What a release does: build, install the wheel where nothing else is, run it.
build: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	.ci/smoke $(BIN)/python $(PINS)

version:
	@$(PYTHON) -c 'from ckpt_tool.common.version import __version__; print(__version__)'

# The newest versions, but for .ci/held.txt, for every Python; and the oldest. Takes minutes.
pins: $(STAMP)
	for version in $(PYTHONS); do \
		$(BIN)/python .ci/pins.py "$$(.ci/python $$version)" dev > pins.new \
		&& mv pins.new .ci/constraints-$$version.txt || exit 1; \
	done
	$(BIN)/python .ci/pins.py $(OLDEST_PYTHON) test --oldest > pins.new
	mv pins.new $(OLDEST_PINS)

clean:
	rm -rf $(VENV) $(OLDEST) .venv-verl $(DEMO) build dist pins.new
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
