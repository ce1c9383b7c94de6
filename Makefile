# Two commands: `make serve` and `make test`. All are thin lines over pip, python and pytest (see CONTRIBUTING.md).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# The public data sets, where they lie beside the checkout; else whatever the caller set, or none.
export SLUICE_DATA ?= $(abspath $(wildcard ../shared/data))

.PHONY: serve test test-resilience test-all test-install test-oldest test-peers lint docs reference bench scores bench-against leaks soak fuzz audit sbom schema clean help

help:            ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## / - /'

$(VENV)/.serve: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[cpu]'
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[cpu,train,dev,docs]'
	@touch $@ $(VENV)/.serve

# An environment of its own, with the oldest versions that pyproject.toml allows.
OLDEST := $(VENV)-oldest
$(OLDEST)/.done: pyproject.toml constraints.txt tests/oldest.py
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python tests/oldest.py cpu train dev > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(OLDEST)/constraints.txt --editable '.[cpu,train,dev]'
	@touch $@

serve: $(VENV)/.serve  ## serve the bundled models on port 8000 (obeys SLUICE_* settings)
	$(BIN)/python -m service

lint: $(VENV)/.test  ## ruff and mypy, strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A file's tests stay together, for they share servers; more than four processes would take too much memory for torch.
PYTEST := $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile
test: lint  ## lint, type-check and the fast tests, on up to four cores
	$(PYTEST) -m 'not slow and not resilience'

test-resilience: $(VENV)/.test  ## hostile clients, overload, processes that die, models that change under load
	$(PYTEST) -m 'resilience and not slow'

test-all: lint  ## every test, the slow ones too
	$(BIN)/python -m pytest -m ''

test-install: $(VENV)/.test  ## the wheel, installed in empty environments: it serves, and imports a model
	$(BIN)/python -m pytest -m '' tests/sluice/test_wheel.py

# Libraries that cannot live in our environment: each has one of its own, and its tests skip without it.
# Those that train with torch are tested with the torch that we are. TensorFlow 2.13 needs Python 3.11 or older.
PEER_darts := darts[torch]==0.48.1 onnx onnxscript onnxruntime
PEER_neuralforecast := neuralforecast==3.3.0
PEER_tf213 := tensorflow-cpu==2.13.1
PEER_tf_keras := tensorflow-cpu==2.21.0 tf_keras==2.21.0
# What is trained beside us on the same data: forecasters of other libraries.
PEER_forecasters := neuralforecast==3.3.0 gluonts[torch]==0.17.0
TRAINERS := $(foreach name,darts neuralforecast tf213 tf_keras,$(VENV)-$(name)/.done)
$(TRAINERS) $(VENV)-forecasters/.done: $(VENV)-%/.done: constraints.txt
	test -x $(VENV)-$*/bin/python || $(PYTHON) -m venv $(VENV)-$*
	grep -E '^torch==' constraints.txt > $(VENV)-$*/constraints.txt
	$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(VENV)-$*/constraints.txt $(foreach package,$(PEER_$*),'$(package)')
	@touch $@

# The clients of docs/protocols.md. mlflow's own client needs what mlflow-skinny leaves out; perf_analyzer is in the wheel of tritonclient.
PEER_mlserver := mlserver==1.7.1 requests
PEER_kserve := kserve==0.21.0
PEER_mlflow := mlflow-skinny==3.17.2 pandas scipy
PEER_nixtla := nixtla==0.9.0
PEER_perf := tritonclient[http]==2.51.0
CLIENTS := $(foreach name,kserve mlserver mlflow nixtla perf,$(VENV)-$(name)/.done)
$(CLIENTS): $(VENV)-%/.done:
	test -x $(VENV)-$*/bin/python || $(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check $(foreach package,$(PEER_$*),'$(package)')
	@touch $@

# Ray with Sluice in it, for deploy/ray.
PEER_ray := ray[data,serve]==2.60.0
$(VENV)-ray/.done: constraints.txt pyproject.toml
	test -x $(VENV)-ray/bin/python || $(PYTHON) -m venv $(VENV)-ray
	$(VENV)-ray/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt '$(PEER_ray)' --editable '.[cpu,score]'
	@touch $@

test-peers: $(VENV)/.test $(TRAINERS) $(CLIENTS) $(VENV)-ray/.done  ## what darts, neuralforecast and Keras 2 predict, and the clients of others; downloads each into an environment of its own
	$(BIN)/python -m pytest -m '' tests/peers

# What the old versions say about newer Pythons and libraries is no failure; what does not work is.
test-oldest: $(OLDEST)/.done  ## the fast tests with the oldest versions that pyproject.toml allows
	$(OLDEST)/bin/python -m pytest -W ignore::DeprecationWarning -W ignore::FutureWarning $(OLDEST_TESTS)
OLDEST_TESTS ?= tests/service tests/contract tests/sluice tests/training

docs: $(VENV)/.test  ## build the site, strictly, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

reference: $(VENV)/.test  ## write the generated parts of docs/reference from the code
	$(BIN)/python -m tests.docs.reference

bench: $(VENV)/.test  ## speed beside other servers, all in one run: writes benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.compare

scores: $(VENV)/.test  ## scores of the bundled models through a running service: writes docs/explanation/scores.md
	$(BIN)/python -m benchmarks.scores $(BENCHMARKS)

forecasters: $(VENV)/.test $(VENV)-forecasters/.done  ## forecasters of other libraries on M4's hourly series, with the time that ours had
	$(BIN)/python -m benchmarks.forecasters --python $(VENV)-forecasters/bin/python

bench-against: $(VENV)/.test  ## speed beside another checkout of Sluice: make bench-against BEFORE=../before
	$(BIN)/python -m benchmarks.before_after --before $(BEFORE)

leaks: $(VENV)/.test  ## whether memory stays where it is over 100,000 requests and 50 loads of a model
	$(BIN)/python -m benchmarks.leaks

soak: $(VENV)/.test  ## mixed load for ten minutes, or SECONDS=..., while workers are killed, stopped and the server is restarted
	$(BIN)/python -m tests.soak $(if $(SECONDS),--seconds $(SECONDS))

# make fuzz SEED=7 CASES=100000; make fuzz REPLAY=fuzz-findings/trees-17.json
fuzz: $(VENV)/.test  ## 24,000 hostile requests to a real server: changed HTTP, changed JSON, and what the OpenAPI document allows
	$(BIN)/python -m tests.fuzz $(if $(SEED),--seed $(SEED)) $(if $(CASES),--cases $(CASES)) $(if $(REPLAY),--replay $(REPLAY))

# Both run from an environment of their own, so that what they need is not what they look at.
TOOLS := $(VENV)-tools
TOOL_PACKAGES := pip-audit==2.10.1 cyclonedx-bom==7.5.0
$(TOOLS)/.done: Makefile
	test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check $(TOOL_PACKAGES)
	@touch $@

# Strict: a package that the advisory database does not know, or a database that cannot be reached, is a failure and no "none found".
audit: $(TOOLS)/.done  ## known vulnerabilities of everything that constraints.txt pins
	@$(TOOLS)/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt \
	  || { echo "audit FAILED: a known vulnerability, or a package that could not be looked up (above)" >&2; exit 1; }

sbom: $(TOOLS)/.done $(VENV)/.serve  ## what is installed in .venv, as CycloneDX, into sbom.cdx.json; the image has its own list
	$(TOOLS)/bin/cyclonedx-py environment --output-reproducible --output-file sbom.cdx.json $(BIN)/python

schema: $(VENV)/.test  ## write models/manifest.schema.json from the reader
	$(BIN)/python -c 'from service.tasks.registry import built_in_tasks; print(built_in_tasks().manifest_schema(), end="")' > models/manifest.schema.json

clean:           ## remove the environment and caches
	rm -rf $(VENV) $(OLDEST) $(TOOLS) site .pytest_cache .mypy_cache .ruff_cache
