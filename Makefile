# `make verify` (a first look: every op once) and `make test` need nothing but Python 3.10+: they create .venv, install
# into it, and run.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: verify verify-all test slow slow-rotating lint bench clean

verify: $(STAMP)
	$(BIN)/goldengate verify --preset tiny --case default

# Every case at TINY, and FLASH, the real sizes: four minutes on two cores.
verify-all: $(STAMP)
	$(BIN)/goldengate verify --preset tiny --preset flash

test: $(STAMP)
	$(BIN)/python -m pytest -n auto

slow: $(STAMP)
	$(BIN)/python -m pytest -n auto -m slow

# A sixth of the slow tests, another each day; "no test" (exit 5) cannot happen while there are slow tests.
slow-rotating: $(STAMP)
	$(BIN)/python -m pytest -n auto -m slow --rotate 6

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install -q -e '.[dev]' -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .goldengate
