# Only python3 (3.11 or later) with pip, and make, are assumed. `make demo` and `make test` stand alone.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.complete
UV     := .cache/uv/bin/uv

.PHONY: help env demo test lint format docs docs-check bench requirements clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

env: $(STAMP)  ## make the environment, when the requirements have changed

# pip works on the environment from outside: Debian's python3 has venv without ensurepip.
# A Python without the venv module gets its environment from uv.
$(STAMP): requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Holdfast needs Python 3.11 or later")'
	@rm -rf $(VENV)
	@echo "making $(VENV) ..."
	@$(PYTHON) -m venv --without-pip $(VENV) 2>/dev/null || { $(MAKE) --no-print-directory $(UV) && $(UV) venv --quiet --clear $(VENV); }
	@$(PYTHON) -m pip --python $(VENV) install -qq --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@$(PYTHON) -m pip --python $(VENV) install -qq --disable-pip-version-check --no-deps --editable .
	@touch $@

$(UV):
	@$(PYTHON) -m pip install -qq --disable-pip-version-check --target .cache/uv uv

demo: env  ## back up, change, destroy, restore and compare a copy of DIR=... (default: Python's library)
	@$(PY) scripts/demo.py $(DIR)

test: env  ## run the tests; ARGS=... goes to pytest
	@$(PY) -m pytest $(ARGS)

lint: env docs-check  ## style, types, floors, and the generated pages
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

format: env  ## let ruff put the sources in order
	@$(VENV)/bin/ruff check --fix
	@$(VENV)/bin/ruff format

docs: env  ## regenerate the pages made from the code
	@$(PY) scripts/gen_cli_docs.py

docs-check: env
	@$(PY) scripts/gen_cli_docs.py --check

bench: env  ## measure against the peers that are installed; ARGS=... goes to the benchmark
	@$(PY) -m bench $(ARGS)

requirements: $(UV)  ## pin the newest versions that pyproject.toml allows
	$(UV) pip compile $(PINS) pyproject.toml --output-file requirements.txt
	$(UV) pip compile $(PINS) pyproject.toml --extra dev --output-file requirements-dev.txt

PINS = --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
       --no-header --no-annotate --no-emit-index-url --no-emit-find-links

clean:  ## remove the environment and all caches
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	find src tests scripts bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
