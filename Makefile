.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
WORKERS ?= 3  # tests wait for servers and disks: one more than CI has cores

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml setup.py requirements-dev.txt $(wildcard src/headrace/pgoutput/*.p[xy][xd])
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP) ## a Postgres database live in Delta Lake, on this machine, in under a minute
	$(VENV)/bin/headrace demo

test: $(STAMP) ## run every test
	$(VENV)/bin/python -m pytest -n $(WORKERS)

lint: $(STAMP) ## ruff, mypy --strict and the layer check
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -q tests/test_layers.py

bench: $(STAMP) ## measure, and write JSON reports to benchmarks/reports
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	$(VENV)/bin/python -m benchmarks

docs: $(STAMP) ## write the generated reference pages
	$(VENV)/bin/python -m docs.generate

clean: ## remove what the other targets made
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f src/headrace/pgoutput/_kernel.c src/headrace/pgoutput/_kernel*.so

.PHONY: help demo test lint bench docs clean
