# Each target does all of its set-up: a fresh machine needs Python 3.11 with venv, and no more.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

# The suite mostly waits for daemons, so it has more processes than the machine has cores.
# They start superd a thousand times, which is to compile it once.
PYTEST := $(BIN)/python -m compileall -q superd plugins && $(BIN)/python -m pytest -q
PARALLEL := -n 4 --dist worksteal

.PHONY: run test test-all soak bench check clean

run: $(READY)
	$(BIN)/superd run -c conf/superd.toml

test: $(READY)
	$(PYTEST) $(PARALLEL) $(PYTEST_ARGS)

# Every test, also the slow ones: many rounds, and foreign programs.
test-all: $(READY)
	$(PYTEST) $(PARALLEL) --slow $(PYTEST_ARGS)

# The endurance tests too, one after the other: minutes each.
soak: $(READY)
	$(PYTEST) --slow --soak $(PYTEST_ARGS)

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
