# Each target does all of its set-up. The machine needs make, and Python 3.11 or later with venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

# The tests mostly wait for daemons, so more of them run at a time than the machine may have cores.
# They start superd a thousand times; it is compiled once, before them.
PYTEST := $(BIN)/python -m compileall -q superd plugins && $(BIN)/python -m pytest
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

# The interpreter is checked first: pip of an older one tries every release of every dependency,
# for half an hour and without any output.
$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "superd needs Python 3.11 or later, and there is\
 no $(PYTHON). Install it, or name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("superd needs Python 3.11\
 or later, and $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12" % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual\
 environments. Install its venv module (Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "Installing superd and its tools into $(VENV); this takes about a minute."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) .cache
