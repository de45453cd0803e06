# Everything runs in .venv, which is made on first use and again when the dependencies change.
PYTHON ?= python3
SEED ?= 0
RUN ?= demo
BIN := .venv/bin
STAMP := .venv/installed
# Python is to keep what it compiles, wherever the shell says that it should not: else each start takes ten seconds more.
export PYTHONDONTWRITEBYTECODE =

.DEFAULT_GOAL := help
.PHONY: help install demo ablation coco spice test test-all fuzz lint format wheel clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do printf '  make %-9s %s\n' "$$name" "$$what"; done

install: $(STAMP)  ## create .venv with the tested versions

# Not compiled, for most of these packages' files are never imported; those that are, are compiled then.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile -e '.[dev]' -c constraints.txt
	@touch $@

demo: $(STAMP)  ## paint the embedded benchmark, train, evaluate, report; another: make demo SEED=1 RUN=demo-1
	$(BIN)/distcap quickstart --run $(RUN) --seed $(SEED)

ablation: $(STAMP)  ## all systems on the benchmark, three seeds, then docs/results.md; interrupted, it goes on
	$(BIN)/distcap ablation --docs docs

coco: $(STAMP)  ## COCO from an empty disk to the results table: prepare, train, test, report; interrupted, it goes on
	$(BIN)/distcap reproduce

spice: $(STAMP)  ## fetch what the SPICE metric needs, 390 MB, by Maven
	$(BIN)/distcap prepare spice

# One thread for each process: the networks of the tests are too small to share.
test: $(STAMP)  ## run all quick tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8

test-all: $(STAMP)  ## run the slow tests too: whole lives of every captioner, two processes, signals
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 -m "slow or not slow"

fuzz: $(STAMP)  ## ten thousand damaged files, command lines and run folders; another: make fuzz SEED=1
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --seed $(SEED)

lint: $(STAMP)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## mend the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(STAMP)  ## build dist/*.whl, configs included
	$(BIN)/python -m build --wheel --no-isolation

clean:  ## remove .venv, caches and builds; data/ and runs/ stay
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
