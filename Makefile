# `make conformance` checks our backend, `make test` tests this project, `make faults` proves that the
# suite's checks can fail, `make bench` measures the backend, and `make image` builds the CPU image for
# --triton-launcher container (which needs Docker).
# Each sets up all it needs on a machine that has Python (3.11 or 3.12) and make.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
MODEL  ?= known-answer
ARGS   ?=

.PHONY: conformance test faults bench image lint wheel clean

conformance: $(VENV)/.installed
	$(BIN)/python -m pytest --vllm-model $(MODEL) $(ARGS)

test: $(VENV)/.installed
	$(BIN)/python -m pytest tests $(ARGS)

faults: $(VENV)/.installed
	$(BIN)/python tests/faults $(ARGS)

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks $(ARGS)

image: $(VENV)/.installed
	$(BIN)/python fixtures/images/cpu/build.py $(ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(VENV)/.installed
	$(BIN)/python -m build --wheel

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
