# Two commands: `make serve` and `make test`. Both are thin lines over pip, python and pytest (see the README).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# The public data sets, where they lie beside the checkout; else whatever the caller set, or none.
export SLUICE_DATA ?= $(abspath $(wildcard ../shared/data))

.PHONY: serve test test-all lint bench soak schema clean help

help:            ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## / - /'

$(VENV)/.serve: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[cpu]'
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[cpu,train,dev]'
	@touch $@ $(VENV)/.serve

serve: $(VENV)/.serve  ## serve the bundled models on port 8000 (obeys SLUICE_* settings)
	$(BIN)/python -m service

lint: $(VENV)/.test  ## ruff and mypy, strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## lint, type-check and the fast tests
	$(BIN)/python -m pytest

test-all: lint  ## every test, the slow ones too
	$(BIN)/python -m pytest -m ''

bench: $(VENV)/.test  ## speed beside other servers, all in one run: writes benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.compare

soak: $(VENV)/.test  ## whether memory stays where it is over 100,000 requests and 50 loads of a model
	$(BIN)/python -m benchmarks.soak

schema: $(VENV)/.test  ## write models/manifest.schema.json from the reader
	$(BIN)/python -c 'from service.tasks.registry import built_in_tasks; print(built_in_tasks().manifest_schema(), end="")' > models/manifest.schema.json

clean:           ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
