# Every target sets up what it needs: a virtual environment in .venv, and into it the core
# (demo) or everything that development needs (the others). A second call does nothing.

PYTHONS := python3.11 python3.12 python3.13 python3
# Tried rather than looked up: a pyenv shim exists for versions that are not there.
PYTHON ?= $(shell for p in $(PYTHONS); do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CORE := $(VENV)/.core-installed
DEV := $(VENV)/.dev-installed

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow conformance check bench docs sbom clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

venv: $(DEV)  ## virtual environment with everything that development needs

$(BIN)/python:
	$(if $(PYTHON),,$(error condec needs Python 3.11 or newer; none of $(PYTHONS) is. Set PYTHON=...))
	$(PYTHON) -m venv $(VENV)

$(CORE): $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[explorer]'
	touch $@

$(DEV): $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[dev,vision,explorer,retina,openretina,bench,docs]'
	$(PIP) --no-deps openretina moviepy
	touch $@ $(CORE)

demo: $(CORE)  ## the whole chain on the embedded digits model; ends with a report
	$(BIN)/condec demo --out runs/demo

# Bytecode is kept, whatever the surroundings say: compiling tests and condec again takes 10 s a process.
test test-slow: export PYTHONDONTWRITEBYTECODE :=
test: $(DEV)  ## all tests but the slow ones
	$(BIN)/pytest -n 2 -m 'not slow'

test-slow: $(DEV)  ## the slow tests: real models, kills, browsers
	$(BIN)/pytest -n 2 -m slow

conformance: $(DEV)  ## real libraries against plain loops; writes the table of docs/correctness.md
	$(BIN)/pytest -m slow -o addopts="-p no:hydra_pytest --import-mode=importlib -ra" tests/conformance

check: $(DEV)  ## style, types, layers, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(DEV)  ## side-by-side measurements, one JSON a script in benchmarks/results/
	set -e; for script in $(filter-out %/measure.py %/retina_scores.py,$(wildcard benchmarks/*.py)); do echo "$$script"; $(BIN)/python "$$script"; done

docs: $(DEV)  ## documentation, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# In an environment of their own: what they need is no part of what they list.
.release/bin/pip-audit: $(BIN)/python
	$(BIN)/python -m venv .release
	.release/bin/pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0 pip-audit==2.10.1

sbom: $(DEV) .release/bin/pip-audit  ## for a release: all packages that the tests ran with (dist/sbom.json), and known flaws of them
	mkdir -p dist
	.release/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o dist/sbom.json $(BIN)/python
	.release/bin/pip-audit --no-deps --disable-pip -r constraints.txt

clean:  ## what the targets made, but the virtual environment and runs
	rm -rf site dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
