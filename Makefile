# Each target does all of its set-up: a fresh machine needs Python 3.11 with venv, and no more.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: run test bench check soak clean

run: $(READY)
	$(BIN)/superd run -c conf/superd.toml

test: $(READY)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# the hazards in full length: minutes, not seconds
soak: $(READY)
	$(BIN)/python -m pytest --soak $(PYTEST_ARGS)

bench: $(READY)
	$(BIN)/python -m tests.bench $(BENCH_ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) .cache
