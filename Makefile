.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
WORKERS ?= 4  # tests wait for servers and timers: twice the cores that CI has

# Tests write much and keep nothing: into memory, where programs may run there and there is room.
MEMORY := $(shell { test "$$(df -Pk /dev/shm | awk 'END {print $$4}')" -gt 8000000 \
	&& awk '$$2 == "/dev/shm" && $$4 !~ /noexec/ {print $$2; exit}' /proc/mounts; } 2>/dev/null)
SCRATCH := $(or $(MEMORY),$(TMPDIR),/tmp)
PYTEST := TMPDIR=$(SCRATCH) $(VENV)/bin/python -m pytest

INTEGRATION := $(addprefix tests/,cli crash docs e2e faults postgres postgres_destination \
	postgres_quarantine postgres_swap regressions reverse reverse_breakage torture transfer verify)

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml setup.py requirements-dev.txt $(wildcard src/headrace/*/*.p[xy][xd])
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP) ## a Postgres database live in Delta Lake, on this machine, in under a minute
	$(VENV)/bin/headrace demo

test: $(STAMP) ## run every test
	$(PYTEST) -n $(WORKERS) --dist worksteal

matrix: $(STAMP) ## the tests of everything that meets Postgres on each version, or one: POSTGRES=13
	@failed=; for version in $(or $(POSTGRES),13 14 15 16 17 18); do \
		echo "Postgres $$version"; \
		bin=$$($(VENV)/bin/python -m headrace.testing.builds $$version .cache/postgres) \
			&& HEADRACE_POSTGRES_BIN=$$bin $(PYTEST) -n $(WORKERS) --dist worksteal $(INTEGRATION) \
			|| failed="$$failed $$version"; \
	done; test -z "$$failed" || { echo "failed on Postgres$$failed"; exit 1; }

torture: $(STAMP) ## random lives under random faults: SEED=… MINUTES=…
	HEADRACE_TORTURE_SEED=$(or $(SEED),$(shell date +%Y%m%d)) HEADRACE_TORTURE_MINUTES=$(or $(MINUTES),10) \
		$(PYTEST) -s tests/torture

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
	rm -f src/headrace/*/_kernel.c src/headrace/*/_kernel*.so

.PHONY: help demo test matrix torture lint bench docs clean
