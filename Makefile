# Every target sets up what it needs, from hash-locked requirements: .venv runs modbrick, .venv-dev
# tests it, .venv-docs builds the site. The first are two because the tests compile for TPUs and GPUs that are not there, and with
# those compilers around jax complains of missing devices at every start.
.DEFAULT_GOAL := help
.PHONY: help quickstart test verify lint format docs lock clean

VENV := .venv
DEV_VENV := .venv-dev
DOCS_VENV := .venv-docs
LOCK_VENV := .venv-lock
PIP_INSTALL = $(@D)/bin/python -m pip --disable-pip-version-check install

# Settings: make test WORKERS=8 PYTEST_FLAGS="-k router"
PYTHON ?=
WORKERS ?= 2
PYTEST_FLAGS ?=
LOCK_FLAGS ?=

PYTHONS = $(or $(PYTHON),python3.12 python3 python)

# Sets the shell variable `python` to a Python 3.12, or to PYTHON, which may be newer.
define find_python
for candidate in $(PYTHONS); do \
  if "$$candidate" -c 'import sys; sys.exit(not (3, 12) <= sys.version_info[:2] <= $(if $(PYTHON),(4, 0),(3, 12)))' \
    2>/dev/null; then python=$$candidate; break; fi; \
done; \
if [ -z "$$python" ]; then \
  echo "error: no Python 3.12 found (tried: $(PYTHONS)); install it, or name one: make PYTHON=/path/to/python" >&2; \
  exit 2; \
fi
endef

# Installs the locked requirements named by the first prerequisite into the environment in whose
# folder the target lies.
define install
@$(@D)/bin/python -c "" 2>/dev/null || { $(find_python); "$$python" -m venv --clear $(@D); }
@echo "Installing $< into $(@D): a minute or two the first time"
@$(PIP_INSTALL) --quiet --require-hashes --only-binary=:all: -r $<
endef

# This project with them, editable.
define install_project
@$(PIP_INSTALL) --quiet --no-deps --no-build-isolation --editable .
@touch $@
endef

help:  ## print the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

quickstart: $(VENV)/.runtime  ## set up, and pretrain a small ModuleFormer on real text
	$(VENV)/bin/python scripts/quickstart.py

test: $(DEV_VENV)/.dev  ## set up, and run the test suite
	$(DEV_VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal -m "not verify" $(PYTEST_FLAGS)

verify: $(DEV_VENV)/.dev  ## the long checks: sweeps, repeated kills, ahead-of-time compilations
	$(DEV_VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal -m verify --timeout 3600 $(PYTEST_FLAGS)

lint: $(DEV_VENV)/.dev  ## lint, check the formatting and the types
	$(DEV_VENV)/bin/ruff check
	$(DEV_VENV)/bin/ruff format --check
	$(DEV_VENV)/bin/mypy

format: $(DEV_VENV)/.dev  ## format, and mend what the linter can mend
	$(DEV_VENV)/bin/ruff check --fix
	$(DEV_VENV)/bin/ruff format

docs: $(DOCS_VENV)/.docs  ## build the site of these pages and the reference, in site/
	NO_MKDOCS_2_WARNING=1 PATH="$(abspath $(DOCS_VENV))/bin:$$PATH" mkdocs build
	@echo "built: python -m http.server --directory site"

lock:  ## renew the locked requirements (LOCK_FLAGS=--upgrade for the newest versions)
	@$(find_python); "$$python" -m venv $(LOCK_VENV)
	@$(LOCK_VENV)/bin/python -m pip --disable-pip-version-check install --quiet uv==0.13.9
	$(call compile,runtime,$(PROJECT))
	$(call compile,dev,$(PROJECT) --extra test --extra dev --extra plan --extra plan-cuda \
	  --constraint requirements/runtime.txt)
	sed -n '/"docs": \[/,/^ *\],/s/^ *"\(.*\)",$$/\1/p' setup.py | $(call compile,docs,- --constraint requirements/dev.txt)

PROJECT := setup.py requirements/build.in

# Neither addresses nor local wheels of the machine get into a lock.
compile = env -u UV_FIND_LINKS $(LOCK_VENV)/bin/uv pip compile --quiet --no-config --universal \
  --python-version 3.12 --generate-hashes --custom-compile-command "make lock" $(LOCK_FLAGS) \
  --output-file requirements/$(1).txt $(2)

clean:  ## remove the environments and every cache
	rm -rf $(VENV) $(DEV_VENV) $(DOCS_VENV) $(LOCK_VENV) site .mypy_cache .pytest_cache .ruff_cache .hypothesis .jax_cache *.egg-info build
	find . -name __pycache__ -not -path './.git/*' -exec rm -rf {} +

$(VENV)/.runtime: requirements/runtime.txt setup.py
	$(install)
	$(install_project)

$(DEV_VENV)/.dev: requirements/dev.txt setup.py
	$(install)
	$(install_project)

$(DOCS_VENV)/.docs: requirements/docs.txt
	$(install)
	@touch $@
