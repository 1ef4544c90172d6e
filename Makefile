# `make demo` and `make test` need Python >= 3.11, make and a package index, and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test lint benchmark measure leaderboard clean

demo: $(VENV)/.installed
	$(BIN)/sophon-bench run --config examples/demo.yaml

# Fast tests first; each test uses one thread, so that two workers do not slow each other.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow" --cov --cov-report=
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m slow --cov --cov-append

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

benchmark: $(VENV)/.installed-test
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest tests/benchmarks --benchmark-enable --benchmark-only

# What docs/performance.md says: about fifteen minutes on two cores, on an idle machine.
measure: $(VENV)/.installed-test
	OMP_NUM_THREADS=2 $(BIN)/python tests/benchmarks/measure.py --out build/performance

# LEADERBOARD.md, and its tables of scores in README.md, from leaderboard/results.
leaderboard: $(VENV)/.installed
	$(BIN)/python tests/published.py --write

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; say which: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
