# Everything a contributor or a CI machine runs. A fresh machine needs make and Python >= 3.11;
# `make demo` and `make test` set up the rest, once, in $(VENV).

# The first interpreter that is new enough; `make PYTHON=/path/to/python ...` overrides it.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$p" && break; done)
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.lorewright-stamp

# Small models gain nothing from more than four threads, and neither does the test run.
CORES := $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); [ "$$n" -gt 4 ] && n=4; echo "$$n")
THREADS ?= $(CORES)
WORKERS ?= $(CORES)
OFFLINE = HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false

# Extra arguments, for instance: make test PYTEST="-k merge -x"   make demo DEMO="--help"
# The base of `make demo-real`: a name that `lore models` lists.
REAL ?= smollm2
PYTEST ?=
DEMO ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-real test test-all check docs house format wheel clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv and install everything (the others do it when needed)

demo: $(STAMP) ## watch the embedded model learn a document, offline
	$(OFFLINE) OMP_NUM_THREADS=$(THREADS) $(BIN)/lore demo --threads 1 $(DEMO)

demo-real: $(STAMP) ## the same on a pretrained base of 135 million parameters, fetched once
	$(BIN)/lore models get $(REAL)
	$(BIN)/lore models get minilm
	$(OFFLINE) OMP_NUM_THREADS=$(THREADS) $(BIN)/lore demo --model $(REAL) --jobs 2 $(DEMO)

RUN_TESTS = $(if $(LOREWRIGHT_NETWORK),,$(OFFLINE)) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test: $(STAMP) ## run the quick tests, offline (one thread for each of WORKERS processes)
	$(RUN_TESTS) -m 'not slow' $(PYTEST)

test-all: $(STAMP) ## run all tests, the quick ones included
	$(RUN_TESTS) $(PYTEST)

check: $(STAMP) ## lint (ruff) and type-check (mypy)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

docs: $(STAMP) ## build the documentation into build/site, without warnings and without a network
	$(BIN)/python docs/generate.py build/docs
	$(BIN)/zensical build --clean --strict --config-file mkdocs.yml

house: $(STAMP) ## count files, import edges and knots, and draw ARCHITECTURE.md's picture anew
	$(BIN)/python docs/draw_architecture.py

format: $(STAMP) ## sort imports and apply ruff's safe fixes
	$(BIN)/python -m ruff check --fix .

wheel: $(STAMP) ## build dist/lorewright-*.whl
	$(BIN)/python -m pip wheel . --no-deps --no-build-isolation --wheel-dir dist

clean: ## remove what the other targets made, .venv included
	rm -rf $(VENV) dist build .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find lorewright tests pocket docs experiments -type d -name __pycache__ -prune -exec rm -rf {} +

# The stamp is written last: it exists only if the installation finished. hatchling comes first so
# that the package itself is built without an isolated, unpinned, network-bound build environment.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "lorewright needs Python 3.11 or newer; none found. Install one, or: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "lorewright needs Python 3.11 or newer; $(PYTHON) is older or does not run." >&2; exit 1; }
	test -x $(BIN)/pip || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt hatchling
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@
