# Everything sets itself up: `make demo` and `make test` work after a clone, with Python >= 3.10, git and make.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.ready
BIN := $(VENV)/bin
SOAK_RUNS ?= 200
SOAK_SECONDS ?= 600

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-clusters soak damage lint type fmt golden bench build check clean

help:  ## show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(STAMP)  ## make the virtual environment

$(STAMP): pyproject.toml
	@PYTHON="$(PYTHON)" sh tests/setup.sh $(VENV)
	@touch $@

demo: setup  ## show the main job: a sweep, a preemption, a resumption
	@$(BIN)/python examples/demo.py

PYTEST := $(BIN)/python -m pytest --dist=loadfile --no-loadscope-reorder
# The tests start some thousand processes; where python may not write bytecode, each would compile us anew.
COMPILE := $(BIN)/python -m compileall -q mlxjobs schedulers

# On two cores, too: most tests wait for the disk, or for another process.
test: setup  ## run the tests, in nine to eleven minutes on two cores (as root: the main job on a real Slurm too, which is installed)
	@$(COMPILE)
	$(PYTEST) --numprocesses=4 -m "short or not (slurm or oar or sge or netfs)"

# One process, as the clusters share an environment of Python, in which a test installs torch.
test-clusters: setup  ## run all tests on a real Slurm, OAR and Grid Engine, and on two nodes over a network file system (root)
	@$(COMPILE)
	$(PYTEST) tests/clusters tests/netfs

soak: setup  ## 200 runs on a real Slurm that is tormented for ten minutes (root); SOAK_RUNS=20 SOAK_SECONDS=60 SOAK_SEED=1
	$(BIN)/python -m tests.soak --runs $(SOAK_RUNS) --seconds $(SOAK_SECONDS) $(SOAK_SEED:%=--seed %)

damage: setup  ## damage every file of a run at every byte, for an hour or two
	MLXJOBS_DAMAGE=1000000 $(BIN)/python -m pytest -q tests/care/test_damage.py

lint: setup  ## check style and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: setup  ## check types
	$(BIN)/mypy

fmt: setup  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: setup  ## write the golden scripts anew; look at the difference before you commit it
	MLXJOBS_WRITE_GOLDEN=1 $(BIN)/python -m pytest -q tests/cluster/test_script.py

bench: setup  ## measure, and print the tables of docs/performance.md
	$(BIN)/python -m benchmarks

build: setup  ## build sdist and wheel into dist/
	$(BIN)/python -m build

check: test test-clusters lint type  ## what CI runs

clean:  ## remove what the targets made
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
