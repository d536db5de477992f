# Every target sets up what it needs. Overridable: PYTHON (who makes the environment), VENV (where), ARGS (passed on),
# HOSTS (of test-lowest).
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
HOSTS ?= timm lightning monai nnunet

BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-slow test-lowest lint docs bench clean

help: ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.stamp-studies ## fine-tune a small U-Net, flat rate against learned rates
	$(BIN)/layertune demo $(ARGS)

test: ## all tests, the fast ones first; the slow ones run even if a fast one fails
	@status=0; $(MAKE) test-fast || status=$$?; $(MAKE) test-slow || status=$$?; exit $$status

test-fast: $(VENV)/.stamp-all,dev ## tests that take seconds, on all cores (pytest-xdist)
	$(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal $(ARGS)

test-slow: $(VENV)/.stamp-all,dev ## tests that train, or start a host's own program, one after the other
	$(BIN)/python -m pytest -m slow $(ARGS)

test-lowest: ## each host alone, in the lowest versions that pyproject.toml allows; HOSTS=timm for one
	@status=0; for host in $(HOSTS); do $(MAKE) --no-print-directory lowest-$$host || status=$$?; done; exit $$status

# The host's own tests, its page, its part of the plug-ins' contract, and the README, in an environment that goes away
# in the end. What is old warns of what it uses of newer packages, so deprecations do not count there.
lowest-%: $(BIN)/uv
	@set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(BIN)/uv venv --quiet --python $(BIN)/python "$$folder/venv"; \
	$(BIN)/uv pip install --quiet --python "$$folder/venv/bin/python" --resolution lowest-direct --editable '.[$*,dev]'; \
	"$$folder/venv/bin/python" -m pytest -k '$* or README' tests/plugins/$* tests/plugins/test_contract.py \
		tests/test_docs.py plugins/layertune_$* -W ignore::DeprecationWarning \
		-W ignore::PendingDeprecationWarning -W ignore::FutureWarning $(ARGS)

lint: $(VENV)/.stamp-all,dev ## ruff (rules and format) and mypy in strict mode
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.stamp-docs ## the site, into site/
	$(BIN)/mkdocs build --strict $(ARGS)

bench: $(VENV)/.stamp-studies ## what a step with learned rates costs, beside the plain step
	$(BIN)/layertune bench step $(ARGS)

clean: ## remove what was built, and the environment
	rm -rf $(VENV) site dist .mypy_cache .pytest_cache .ruff_cache
	find src tests $(wildcard plugins) -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(BIN)/uv: | $(BIN)/python
	$(BIN)/python -m pip install --quiet 'uv>=0.5' # pip cannot ask for the lowest versions

# .stamp-EXTRAS stands for `pip install -e .[EXTRAS]` with the pyproject.toml of that time.
$(VENV)/.stamp-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch '$@'
