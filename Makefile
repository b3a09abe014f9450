# Everything sets itself up: a virtual environment in .venv, the pinned packages of constraints.txt, the project itself.
# Another Python:                make test PYTHON=python3.12
# A small download without CUDA: make demo PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test lint format constraints clean
.DELETE_ON_ERROR:

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

demo: .venv/.demo ## Teach two students, one of them with explanations, and compare them (minutes, offline once installed)
	$(BIN)/egkd demo

test: export OMP_NUM_THREADS = 1
test: export HF_HUB_OFFLINE = 1
test: export TOKENIZERS_PARALLELISM = false
test: lint ## Check style and types, run all tests
	$(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile

lint: .venv/.dev ## Check style, formatting and types only
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/.dev ## Sort imports, mend what can be mended, format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

constraints: ## Resolve the newest versions anew (torch as pinned) and write them to constraints.txt
	rm -rf build/pins && $(PYTHON) -m venv build/pins
	grep '^torch==' constraints.txt > build/torch.txt
	build/pins/bin/python -m pip install --constraint build/torch.txt --editable '.[demo,dev,export,hpo,test]'
	grep '^#' constraints.txt > build/constraints.txt
	build/pins/bin/python -m pip list --format freeze --exclude egkd --exclude pip | sed 's/+.*//' >> build/constraints.txt
	mv build/constraints.txt constraints.txt

clean: ## Remove the environment, caches and builds; runs stay
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last, so an interrupted installation is taken up again, and a finished one is not repeated until
# the settings change.
.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Found $$($(PYTHON) --version 2>&1), need Python 3.11 or newer; name it: make $(MAKECMDGOALS) PYTHON=python3.12"; \
	  exit 1; }
	$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/.demo: .venv/.made pyproject.toml constraints.txt
	$(INSTALL) --editable '.[demo]'
	@touch $@

.venv/.dev: .venv/.made pyproject.toml constraints.txt
	$(INSTALL) --editable '.[demo,dev,export,test]'
	@touch $@ .venv/.demo
