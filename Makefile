# The two commands of a newcomer are `make demo` and `make test`; nothing but Python 3.11+ and make
# has to be there before.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python3.14; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
NEWEST ?= $(shell .ci/newest-python)
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
DEMO_BIN = $(if $(wildcard $(BIN)/semel),$(BIN),.venv-demo/bin)
NEWEST_TESTS = $(addprefix tests/,http django core functions drivers operation stores client)
PYTEST = $(BIN)/python -m pytest -q
say = @printf '\n\033[1m== %s\033[0m\n' "$(1)"

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

.PHONY: python
python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed (with venv): install it, or say make PYTHON=/path/to/python3" >&2; exit 1; }

$(BIN)/.installed: requirements/dev.txt pyproject.toml | python
	$(call say,Setting up $(VENV))
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv-demo/bin/.installed: requirements/demo.txt pyproject.toml | python
	$(call say,Setting up .venv-demo)
	@test -d .venv-demo || $(PYTHON) -m venv .venv-demo
	@.venv-demo/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/demo.txt
	@.venv-demo/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv-newest/bin/.installed: requirements/dev.txt pyproject.toml
	@test -n "$(NEWEST)" || { echo "No Python from 3.12 on is here: install one, or say make test-newest NEWEST=/path/to/python3" >&2; exit 1; }
	$(call say,Setting up .venv-newest with $(NEWEST))
	@$(NEWEST) -m venv --clear .venv-newest
	@.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: setup
setup: $(BIN)/.installed ## Make the virtual environment and install everything

.PHONY: demo
demo: $(if $(wildcard $(BIN)/.installed),,.venv-demo/bin/.installed) ## A shop under a storm of retries, crashes and double-clicks
	@$(DEMO_BIN)/semel demo $(ARGS)

.PHONY: test
test: lint types imports unit sim chaos ## Everything that CI runs

.PHONY: lint
lint: setup ## Style
	$(call say,ruff)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

.PHONY: format
format: setup ## Format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: types
types: setup ## Strict types
	$(call say,mypy --strict)
	@$(BIN)/mypy

.PHONY: imports
imports: setup ## The arrows between modules
	$(call say,import-linter)
	@PYTHONPATH=src $(BIN)/lint-imports

.PHONY: unit
unit: setup ## Behaviour: core, stores, adapters, docs, demo
	$(call say,tests)
	@$(PYTEST) -n $(WORKERS) --dist loadgroup -m "not chaos and not sim"

.PHONY: sim
sim: setup ## Simulated histories, all schedules of the small scope, planted bugs
	$(call say,simulation)
	@$(PYTEST) -n $(WORKERS) -m sim -rP --no-header | grep -vE '^(-+ Captured|_+ )' ; exit $${PIPESTATUS[0]}

.PHONY: chaos
chaos: setup ## Real processes, really killed
	$(call say,chaos)
	@$(PYTEST) -n $(WORKERS) -m chaos -rP --no-header | grep -vE '^(-+ Captured|_+ )' ; exit $${PIPESTATUS[0]}

.PHONY: test-newest
test-newest: .venv-newest/bin/.installed ## Frameworks and stores on the newest Python from 3.12 on
	$(call say,tests on the newest Python)
	@.venv-newest/bin/python -c 'import sys, django, fastapi, flask; from importlib.metadata import version as v; print("Python", sys.version.split()[0], *(f"{n} {v(n)}" for n in ("Django", "FastAPI", "Flask")))'
	@.venv-newest/bin/python -m pytest -q -n $(WORKERS) --dist loadgroup -m "not chaos and not sim and not slow" $(NEWEST_TESTS)

.PHONY: coverage
coverage: setup ## Which lines the tests reach
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -q -m "not chaos and not sim and not slow"
	@$(BIN)/coverage combine -q
	@$(BIN)/coverage report

.PHONY: bench
bench: setup ## Ratios, side by side in one run
	@$(BIN)/python -m bench $(ARGS)

.PHONY: peers
peers: setup ## semel check over other libraries, each in a virtual environment of its own
	@$(BIN)/python -m bench.peers $(ARGS)
	@$(BIN)/python docs/generate.py

.PHONY: docs
docs: setup ## Build the documentation into site/
	@$(BIN)/mkdocs build --strict --quiet

.PHONY: lock
lock: ## Lock the requirements anew (needs uv)
	@for n in dev demo; do uv pip compile -q --upgrade --generate-hashes --no-emit-index-url --universal \
		--python-version 3.11 --custom-compile-command "make lock" requirements/$$n.in -o requirements/$$n.txt; done

JS := src/semel/web/browser/semel

.PHONY: js
js: ## Make semel.min.js anew (needs npx)
	@npx --yes terser@5.51.4 $(JS).js --ecma 2022 --compress passes=3,unsafe_arrows,unsafe_methods --mangle -o $(JS).min.js
	@printf '//%.8s\n' "$$(sha256sum < $(JS).js)" >> $(JS).min.js

.PHONY: clean
clean: ## Remove what was made
	@rm -rf .venv .venv-demo .venv-newest site build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* bench/.venvs
